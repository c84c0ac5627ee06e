"""WSGI application of the back office, which gunicorn runs."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.backoffice")

application = get_wsgi_application()
