"""What the web server runs."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup(set_prefix=False)

from exchange.wsgi import ExchangeHandler  # noqa: E402 (Django must be set up first)

application = ExchangeHandler()
