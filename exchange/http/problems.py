"""HTTP representation of errors: maps exceptions to problem+json, and error codes to status codes."""

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec
import psycopg
import structlog
from django.core.exceptions import PermissionDenied, SuspiciousOperation, TooManyFieldsSent
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions
from rest_framework.request import Request

from exchange import errors
from exchange.database import has_no_connection, replace_lost_connections
from exchange.errors import ExchangeError
from exchange.http.middleware import request_id_of
from exchange.http.responses import RenderedResponse
from exchange.json_codec import Problem, encode_json

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
CHALLENGE = "Bearer"

STATUSES: dict[str, HTTPStatus] = {
    "malformed_request": HTTPStatus.BAD_REQUEST,
    "validation_error": HTTPStatus.BAD_REQUEST,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "broker_mismatch": HTTPStatus.FORBIDDEN,
    "scope_missing": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "broker_not_found": HTTPStatus.NOT_FOUND,
    "symbol_not_found": HTTPStatus.NOT_FOUND,
    "order_not_found": HTTPStatus.NOT_FOUND,
    "key_not_found": HTTPStatus.NOT_FOUND,
    "webhook_not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "webhook_deleted": HTTPStatus.CONFLICT,
    "nothing_to_redeliver": HTTPStatus.CONFLICT,
    "broker_already_exists": HTTPStatus.CONFLICT,
    "symbol_already_listed": HTTPStatus.CONFLICT,
    "instrument_in_use": HTTPStatus.CONFLICT,
    "transfer_reference_conflict": HTTPStatus.CONFLICT,
    "client_order_id_conflict": HTTPStatus.CONFLICT,
    "insufficient_balance": HTTPStatus.CONFLICT,
    "insufficient_holdings": HTTPStatus.CONFLICT,
    "instrument_halted": HTTPStatus.CONFLICT,
    "broker_suspended": HTTPStatus.CONFLICT,
    "too_many_open_orders": HTTPStatus.CONFLICT,
    "too_many_fills": HTTPStatus.CONFLICT,
    "order_not_cancellable": HTTPStatus.CONFLICT,
    "reconcile_under_way": HTTPStatus.CONFLICT,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "rate_limited": HTTPStatus.TOO_MANY_REQUESTS,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "overloaded": HTTPStatus.SERVICE_UNAVAILABLE,
    "outcome_unknown": HTTPStatus.GATEWAY_TIMEOUT,
}

# PostgreSQL cancelled the statement before the COMMIT: a lock or statement timeout, or a deadlock.
_NOT_EXECUTED = {"55P03", "57014", "40P01"}

_log = structlog.get_logger(__name__)


def problem_from_exception(exception: Exception, context: dict[str, Any]) -> HttpResponse:
    """REST framework's exception handler: converts every exception of a view to a problem response."""
    request: Request = context["request"]
    response = problem_response(as_exchange_error(exception), request_id_of(request.META)).as_django()
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response["Allow"] = ", ".join(context["view"].allowed_methods)
    return response


def problem_response(error: ExchangeError, request_id: str) -> RenderedResponse:
    """Return the `application/problem+json` response to a rejected request, with its headers."""
    problem = problem_of(error, request_id)
    headers = {"Content-Type": MEDIA_TYPE}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = CHALLENGE
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(error, errors.UnsupportedContentEncoding):
        headers["Accept-Encoding"] = "identity"
    if isinstance(error, errors.RateLimited):
        headers["Retry-After"] = str(error.retry_after_seconds)
    return RenderedResponse(problem.status, headers, encode_json(problem))


def problem_of(error: ExchangeError, request_id: str) -> Problem:
    """Return the problem (RFC 9457) of an error."""
    status = STATUSES[error.code]
    return Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=error.detail,
        code=error.code,
        request_id=request_id,
        errors=error.errors or msgspec.UNSET,
    )


def as_exchange_error(exception: Exception) -> ExchangeError:
    """Convert any exception to an `ExchangeError`. Unexpected exceptions are logged."""
    if isinstance(exception, ExchangeError):
        return exception
    if isinstance(exception, OperationalError | InterfaceError):
        _log.warning("database_error", error=str(exception))
        if _was_not_executed(exception):
            return errors.Overloaded()
        replace_lost_connections()
        return errors.OutcomeUnknown()
    for kind, error in _FRAMEWORK.items():
        if isinstance(exception, kind):
            return error()
    _log.error("unexpected", exc_info=exception)
    return errors.InternalError()


_FRAMEWORK: dict[type[Exception], Callable[[], ExchangeError]] = {
    Http404: errors.NotFound,
    PermissionDenied: errors.ScopeMissing,
    TooManyFieldsSent: partial(errors.MalformedRequest, "The query has too many parameters."),
    SuspiciousOperation: partial(errors.MalformedRequest, "The request is malformed."),
    exceptions.MethodNotAllowed: errors.MethodNotAllowed,
    exceptions.UnsupportedMediaType: errors.UnsupportedMediaType,
}


def _was_not_executed(exception: Exception) -> bool:
    cause = exception.__cause__
    if has_no_connection(exception):
        return True
    if not isinstance(cause, psycopg.Error):
        return False
    failed_to_connect = cause.pgconn is not None  # only set if connecting failed
    return failed_to_connect or cause.sqlstate in _NOT_EXECUTED


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler400`, for suspicious requests."""
    return _problem(request, errors.MalformedRequest("The request is malformed."))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler403`."""
    return _problem(request, errors.ScopeMissing())


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`, for unknown paths."""
    return _problem(request, errors.NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`, for errors outside views, such as in a middleware."""
    _log.exception("unexpected")
    return _problem(request, errors.InternalError())


def _problem(request: HttpRequest, error: ExchangeError) -> HttpResponse:
    return problem_response(error, request_id_of(request.META)).as_django()
