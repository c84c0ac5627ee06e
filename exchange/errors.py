"""The errors of the exchange: one class per public `code`, whose docstring is the default message.

The matching rules return them as values; only the caller that submitted one command raises them. Their HTTP status is
in `exchange.http.problems`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error of one field: its name (dotted if nested), a stable code and a sentence."""

    field: str
    code: str
    detail: str


class ExchangeError(Exception):
    """Base class: the request was rejected."""

    code: str

    def __init__(self, detail: str = "", *, errors: Sequence[FieldError] = ()) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        self.errors = tuple(errors)
        super().__init__(self.detail)


class ValidationFailed(ExchangeError):
    """Some fields are invalid; `errors` names each."""

    code = "validation_error"


class MalformedRequest(ExchangeError):
    """The body must be a JSON object in UTF-8."""

    code = "malformed_request"


class MethodNotAllowed(ExchangeError):
    """This path does not support this method; the Allow header lists the supported ones."""

    code = "method_not_allowed"


class UnsupportedMediaType(ExchangeError):
    """Send the body as application/json."""

    code = "unsupported_media_type"


class UnsupportedContentEncoding(UnsupportedMediaType):
    """Send the body without a Content-Encoding."""


class TooLarge(ExchangeError):
    """The body is larger than this path accepts."""

    code = "too_large"


class Unauthenticated(ExchangeError):
    """Send a valid key as `Authorization: Bearer <key>`."""

    code = "unauthenticated"


class BrokerMismatch(ExchangeError):
    """This key belongs to another broker."""

    code = "broker_mismatch"


class ScopeMissing(ExchangeError):
    """This key lacks the scope that the request needs."""

    code = "scope_missing"


class NotFound(ExchangeError):
    """Not found."""

    code = "not_found"


class BrokerNotFound(ExchangeError):
    """Broker not found."""

    code = "broker_not_found"


class SymbolNotFound(ExchangeError):
    """No instrument with this symbol is listed."""

    code = "symbol_not_found"


class OrderNotFound(ExchangeError):
    """Order not found."""

    code = "order_not_found"


class KeyNotFound(ExchangeError):
    """Key not found."""

    code = "key_not_found"


class WebhookNotFound(ExchangeError):
    """Webhook not found."""

    code = "webhook_not_found"


class WebhookDeleted(ExchangeError):
    """This webhook is deleted. Nothing is sent to it."""

    code = "webhook_deleted"


class NothingToRedeliver(ExchangeError):
    """None of these deliveries can be redelivered: they are pending, in flight or already being redelivered."""

    code = "nothing_to_redeliver"


class BrokerAlreadyExists(ExchangeError):
    """A broker with this id already exists."""

    code = "broker_already_exists"


class SymbolAlreadyListed(ExchangeError):
    """An instrument with this symbol is already listed."""

    code = "symbol_already_listed"


class InstrumentInUse(ExchangeError):
    """This instrument was ordered or held, so it cannot be removed. Halt it instead."""

    code = "instrument_in_use"


class TransferReferenceConflict(ExchangeError):
    """This reference was used for a different transfer; `errors` names the differing fields."""

    code = "transfer_reference_conflict"


class ClientOrderIdConflict(ExchangeError):
    """This client_order_id was used for a different order; `errors` names the differing fields."""

    code = "client_order_id_conflict"


class InsufficientBalance(ExchangeError):
    """The broker's available cash is insufficient."""

    code = "insufficient_balance"


class InsufficientHoldings(ExchangeError):
    """The broker's available shares are insufficient."""

    code = "insufficient_holdings"


class InstrumentHalted(ExchangeError):
    """Trading in this instrument is halted."""

    code = "instrument_halted"


class BrokerSuspended(ExchangeError):
    """This broker is suspended and cannot place orders."""

    code = "broker_suspended"


class TooManyOpenOrders(ExchangeError):
    """The broker has reached the limit of open orders in this instrument. Cancel some, or send an ioc or fok order."""

    code = "too_many_open_orders"


class TooManyFills(ExchangeError):
    """This order would fill more resting orders than one order may. Split it."""

    code = "too_many_fills"


class OrderNotCancellable(ExchangeError):
    """The order is already final and cannot be cancelled."""

    code = "order_not_cancellable"


class ReconcileUnderWay(ExchangeError):
    """A reconciliation is already running. Wait for its result."""

    code = "reconcile_under_way"


class RateLimited(ExchangeError):
    """The key's rate limit is exceeded. The request was not executed; wait for the seconds in Retry-After."""

    code = "rate_limited"

    def __init__(self, detail: str = "", *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(ExchangeError):
    """The exchange is busy. The request was not executed; try again shortly."""

    code = "overloaded"


class OutcomeUnknown(ExchangeError):
    """It is unknown whether the request was executed. Repeat it with the same client_order_id, or look it up."""

    code = "outcome_unknown"


class InternalError(ExchangeError):
    """An internal error occurred and was logged. It is unknown whether the request was executed."""

    code = "internal_error"
