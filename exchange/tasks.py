"""Periodic tasks: retention."""

from celery import shared_task

from exchange import rejection_counts


@shared_task
def drop_rejects() -> None:
    """Delete old counts of rejected orders."""
    rejection_counts.delete_old()
