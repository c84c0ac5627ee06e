"""What beat repeats: expiry. Correctness never depends on it being on time; an order past its time does not trade."""

from celery import shared_task
from django.conf import settings
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from exchange.models import Instrument
from orders import services
from orders.models import Order


@shared_task
def sweep_expired() -> None:
    """Start one small task per book that has something due, so that one stuck book stops no other."""
    due = Order.objects.due(Now()).filter(instrument=OuterRef("symbol"))
    for symbol in Instrument.objects.filter(Exists(due)).values_list("symbol", flat=True):
        # Beat asks again soon: a message that waited longer than this is one too many.
        expire_orders.apply_async((symbol,), expires=settings.EXPIRY_MESSAGE_SECONDS)


@shared_task
def expire_orders(symbol: str) -> None:
    """Expire what is due in one book."""
    services.expire_orders(symbol)
