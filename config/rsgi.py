"""What the API's server runs."""

import gc
import os

import django

if os.environ["DJANGO_SETTINGS_MODULE"] == "config.settings.backoffice":  # Celery's default: `config` imports it first
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.api"
django.setup(set_prefix=False)

from gateway import order_entry  # noqa: E402
from gateway.application import Gateway  # noqa: E402 (Django must be set up first)
from gateway.django_handler import ExchangeHandler  # noqa: E402
from orders.matching import sequencer  # noqa: E402

application = Gateway(
    ExchangeHandler(), is_queue_full=sequencer.is_full, parse_fast_request=order_entry.parse_fast_request
)
gc.freeze()  # what is loaded by now stays: the collector need not look through it again and again
