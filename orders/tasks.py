"""Periodic tasks: expiry, bars and reconciliations.

Correctness does not depend on their timing: an order past its `expires_at` does not trade, and late bars are computed
by the next run.
"""

from uuid import UUID

import structlog
from celery import shared_task
from django.conf import settings
from django.db import OperationalError

from orders import activity, expiry
from orders.reconciliation import runs

_log = structlog.get_logger(__name__)


@shared_task
def sweep_expired() -> None:
    """Expire the orders that are due."""
    try:
        expiry.expire_due_orders()
    except OperationalError as error:
        _log.warning("expiry_put_off", error=str(error))


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
