"""Scheduled tasks of the back office."""

from datetime import UTC, datetime

from axes.models import AccessAttempt
from celery import shared_task
from django.conf import settings
from django.contrib.sessions.models import Session
from django.db.models import QuerySet


@shared_task(ignore_result=True)
def clean_up() -> None:
    """Delete ended sessions and failed logins that no longer count."""
    now = datetime.now(UTC)
    _remove(Session.objects.filter(expire_date__lt=now))
    _remove(AccessAttempt.objects.filter(attempt_time__lt=now - settings.LOGIN_LOCKOUT))


def _remove(rows: QuerySet[Session] | QuerySet[AccessAttempt]) -> None:
    """Delete one batch. The next run continues."""
    batch = rows.order_by("pk").values("pk")[: settings.CLEAN_UP_ROWS]
    rows.model._default_manager.filter(pk__in=batch).delete()
