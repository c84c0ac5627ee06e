"""What beat repeats: expiry, the bars, and looking after reconciliations, which workers make.

Correctness never depends on it being on time: an order past its time does not trade, and a bar that is late is made the
next time.
"""

from uuid import UUID

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
from orders.reconciliation import runs

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


@shared_task
def tend_reconcile_runs() -> None:
    """See to it that every reconciliation begins, and ends."""
    runs.maintain()


@shared_task(name=runs.TASK, time_limit=settings.RECONCILE_TASK_SECONDS)
def run_reconcile(run_id: str) -> None:
    """Make a reconciliation. It may take an hour, and leaves the worker's other process for what is short."""
    runs.perform(UUID(run_id))
