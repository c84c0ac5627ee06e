"""RSGI application of the naive matcher: the same gateway, with plain Django behind it."""

from typing import cast

from django.core.wsgi import get_wsgi_application

django = get_wsgi_application()

from gateway.application import WSGI, Gateway  # noqa: E402 (Django must be set up first)

application = Gateway(cast(WSGI, django), is_queue_full=lambda: False, parse_fast_request=lambda _: None)
