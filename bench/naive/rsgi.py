"""What the web server runs for the naive matcher: the same front, and behind it nothing but Django."""

from typing import cast

from django.core.wsgi import get_wsgi_application

django = get_wsgi_application()

from gateway.application import WSGI, Front  # noqa: E402 (Django must be set up first)

application = Front(cast(WSGI, django), takes_no_orders=lambda: False, errand_of=lambda _: None)
