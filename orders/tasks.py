"""Periodic tasks: expiry, bars and reconciliations.

Correctness does not depend on their timing: an order past its `expires_at` does not trade, and late bars are computed
by the next run.
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
    """Start one task per book that has orders to expire, so that a stuck book does not delay the others."""
    due = Order.objects.due(Now()).filter(instrument=OuterRef("symbol"))
    for symbol in Instrument.objects.filter(Exists(due)).values_list("symbol", flat=True):
        expire_orders.apply_async((symbol,), expires=settings.EXPIRY_MESSAGE_SECONDS)


@shared_task
def expire_orders(symbol: str) -> None:
    """Expire the orders of one book. Leave a locked book to the next sweep, so that other books are not delayed."""
    try:
        with lock_timeout(settings.EXPIRY_LOCK_TIMEOUT):
            services.expire_orders(symbol)
    except OperationalError as error:
        _log.warning("expiry_put_off", symbol=symbol, error=str(error))


@shared_task
def roll_up() -> None:
    """Update the bars."""
    try:
        activity.roll_up()
    except OperationalError as error:
        _log.warning("bars_put_off", error=str(error))


@shared_task
def tend_reconcile_runs() -> None:
    """Start pending reconciliation runs again, and end abandoned ones."""
    runs.maintain()


@shared_task(name=runs.TASK, time_limit=settings.RECONCILE_TASK_SECONDS)
def run_reconcile(run_id: str) -> None:
    """Run a reconciliation. It may take an hour, and leaves the worker's other process to the short tasks."""
    runs.perform(UUID(run_id))
