"""Where requests hand in their commands and wait for the outcome."""

from collections.abc import Sequence
from typing import overload

from exchange.errors import ExchangeError
from orders import services
from orders.commands import Accepted, Cancelled, CancelOrder, Command, Outcome, PlaceOrder, Replayed, Swept


@overload
def submit(command: PlaceOrder) -> Accepted | Replayed: ...
@overload
def submit(command: CancelOrder) -> Cancelled: ...
def submit(command: PlaceOrder | CancelOrder) -> Accepted | Replayed | Cancelled | Swept:
    """Run one command now and answer with its outcome; a refusal is raised."""
    (outcome,) = submit_all([command])
    if isinstance(outcome, ExchangeError):
        raise outcome
    return outcome


def submit_all(commands: Sequence[Command]) -> list[Outcome]:
    """Run `commands` now; one outcome each, in their order: a refusal is an outcome like any other."""
    return services.execute(commands)
