"""What beat repeats: expiry, and the bars. Correctness never depends on it being on time.

An order past its time does not trade, and a bar that is late is made the next time.
"""

import structlog
from celery import shared_task
from django.conf import settings
from django.db import OperationalError
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from exchange.database import lock_timeout
from exchange.models import Instrument
from orders import activity, services
from orders.models import Order

_log = structlog.get_logger(__name__)


@shared_task
def sweep_expired() -> None:
    """Start one small task per book that has something due, so that one stuck book stops no other."""
    due = Order.objects.due(Now()).filter(instrument=OuterRef("symbol"))
    for symbol in Instrument.objects.filter(Exists(due)).values_list("symbol", flat=True):
        expire_orders.apply_async((symbol,), expires=settings.EXPIRY_MESSAGE_SECONDS)


@shared_task
def expire_orders(symbol: str) -> None:
    """Expire what is due in one book; one that is busy is left to the next sweep, for others may be due elsewhere."""
    try:
        with lock_timeout(settings.EXPIRY_LOCK_TIMEOUT):
            services.expire_orders(symbol)
    except OperationalError as error:
        _log.warning("expiry_put_off", symbol=symbol, error=str(error))


@shared_task
def roll_up() -> None:
    """Bring the bars up to now."""
    try:
        activity.roll_up()
    except OperationalError as error:
        _log.warning("bars_put_off", error=str(error))
