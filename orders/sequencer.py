"""Where requests hand in their commands and wait for the outcome."""

from typing import overload

from exchange.errors import ExchangeError
from orders import services
from orders.commands import Accepted, Cancelled, CancelOrder, PlaceOrder, Replayed, Swept


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Run one command now and answer with its outcome; a refusal is raised."""
    (outcome,) = services.execute([command])
    if isinstance(outcome, ExchangeError):
        raise outcome
    return outcome
