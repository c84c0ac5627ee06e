"""What beat repeats: what need not be kept is dropped."""

from celery import shared_task

from exchange import rejects


@shared_task
def drop_rejects() -> None:
    """Drop the counts of refused orders that are older than anybody asks for."""
    rejects.drop_old()
