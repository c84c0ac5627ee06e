"""Every way the exchange says no: one class per public `code`, its docstring the default sentence.

The rules return these as values; only the edge that asked for one thing raises them. How each is spoken over HTTP is
`exchange.http.problems`' business alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field: its name (dotted where nested), a stable code, and a sentence."""

    field: str
    code: str
    detail: str


class ExchangeError(Exception):
    """The request was refused."""

    code: str

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = ()) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        self.errors = tuple(errors)
        super().__init__(self.detail)


class ValidationFailed(ExchangeError):
    """Some fields of the request break a rule; `errors` names each."""

    code = "validation_error"


class MalformedRequest(ExchangeError):
    """The body is not a JSON object in UTF-8."""

    code = "malformed_request"


class MethodNotAllowed(ExchangeError):
    """This path does not answer to this method; the Allow header names those it does."""

    code = "method_not_allowed"


class UnsupportedMediaType(ExchangeError):
    """Send the body as application/json."""

    code = "unsupported_media_type"


class TooLarge(ExchangeError):
    """The body is larger than this path accepts."""

    code = "too_large"


class Unauthenticated(ExchangeError):
    """Send a valid key as `Authorization: Bearer <key>`."""

    code = "unauthenticated"


class BrokerMismatch(ExchangeError):
    """This key acts for another broker."""

    code = "broker_mismatch"


class ScopeMissing(ExchangeError):
    """This key does not have the scope that the request needs."""

    code = "scope_missing"


class NotFound(ExchangeError):
    """There is nothing at this path."""

    code = "not_found"


class BrokerNotFound(ExchangeError):
    """There is no such broker."""

    code = "broker_not_found"


class SymbolNotFound(ExchangeError):
    """No instrument with this symbol is listed."""

    code = "symbol_not_found"


class OrderNotFound(ExchangeError):
    """There is no such order."""

    code = "order_not_found"


class KeyNotFound(ExchangeError):
    """This broker has no key with that prefix."""

    code = "key_not_found"


class WebhookNotFound(ExchangeError):
    """There is no such webhook."""

    code = "webhook_not_found"


class WebhookDeleted(ExchangeError):
    """This webhook was deleted: nothing is sent to it any more."""

    code = "webhook_deleted"


class NothingToRedeliver(ExchangeError):
    """None of these deliveries can be made again: they are due or on their way, or are being made again already."""

    code = "nothing_to_redeliver"


class BrokerAlreadyExists(ExchangeError):
    """A broker with this id exists already."""

    code = "broker_already_exists"


class SymbolAlreadyListed(ExchangeError):
    """An instrument with this symbol is listed already."""

    code = "symbol_already_listed"


class TransferReferenceConflict(ExchangeError):
    """This reference was used for a different transfer; `errors` names what differs."""

    code = "transfer_reference_conflict"


class ClientOrderIdConflict(ExchangeError):
    """This client_order_id was used for a different order; `errors` names what differs."""

    code = "client_order_id_conflict"


class InsufficientBalance(ExchangeError):
    """The broker's available cash does not cover this."""

    code = "insufficient_balance"


class InsufficientHoldings(ExchangeError):
    """The broker's available shares do not cover this."""

    code = "insufficient_holdings"


class InstrumentHalted(ExchangeError):
    """Trading in this instrument is halted."""

    code = "instrument_halted"


class BrokerSuspended(ExchangeError):
    """This broker is suspended and may not place orders."""

    code = "broker_suspended"


class TooManyOpenOrders(ExchangeError):
    """The broker has as many open orders in this instrument as it may; cancel some, or send an ioc or fok order."""

    code = "too_many_open_orders"


class TooManyFills(ExchangeError):
    """This order would fill more resting orders than one order may; split it."""

    code = "too_many_fills"


class OrderNotCancellable(ExchangeError):
    """The order is in a final state."""

    code = "order_not_cancellable"


class ReconcileUnderWay(ExchangeError):
    """A reconciliation is under way: wait for its verdict."""

    code = "reconcile_under_way"


class RateLimited(ExchangeError):
    """This key sent more than it may, and nothing of this was done; wait for the seconds that Retry-After names."""

    code = "rate_limited"

    def __init__(self, detail: str = "", *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(ExchangeError):
    """The exchange is busy and did not do this; try again shortly."""

    code = "overloaded"


class OutcomeUnknown(ExchangeError):
    """It is not known whether this was done: repeat it with the same client_order_id, or look it up."""

    code = "outcome_unknown"


class InternalError(ExchangeError):
    """Something went wrong here, and it is not known whether this was done; it has been logged."""

    code = "internal_error"
