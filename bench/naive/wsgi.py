"""What the web server runs for the naive matcher."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
