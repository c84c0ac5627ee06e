"""RSGI application of the API, which granian runs."""

import gc
import os

import django

# `config` imports config.celery first, which sets the default of the other processes.
if os.environ["DJANGO_SETTINGS_MODULE"] == "config.settings.backoffice":
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings.api"
django.setup(set_prefix=False)

from gateway import order_entry  # noqa: E402
from gateway.application import Gateway  # noqa: E402 (Django must be set up first)
from gateway.django_handler import ExchangeHandler  # noqa: E402
from orders.matching import sequencer  # noqa: E402

application = Gateway(
    ExchangeHandler(), is_queue_full=sequencer.is_full, parse_fast_request=order_entry.parse_fast_request
)
gc.freeze()  # loaded modules stay in memory, so the garbage collector can skip them
gc.set_threshold(20_000, 20, 20)  # requests leave few cycles; with the defaults, a tenth of the time was spent here
