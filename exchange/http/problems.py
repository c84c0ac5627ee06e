"""How each refusal is spoken over HTTP: the only place that knows both the codes and the status numbers."""

from http import HTTPStatus
from typing import Any

import msgspec
import psycopg
import psycopg_pool
import structlog
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions
from rest_framework.request import Request

from exchange import errors
from exchange.database import replace_lost_connections
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

# PostgreSQL gave up before the COMMIT: a lock or statement timed out, or a deadlock was broken.
_CERTAINLY_NOT_DONE = {"55P03", "57014", "40P01"}

_log = structlog.get_logger(__name__)


def problem_from_exception(exception: Exception, context: dict[str, Any]) -> HttpResponse:
    """REST framework's exception handler: every exception of a view becomes a problem."""
    request: Request = context["request"]
    response = problem_response(as_exchange_error(exception), request_id_of(request.META)).as_django()
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response["Allow"] = ", ".join(context["view"].allowed_methods)
    return response


def problem_response(refusal: ExchangeError, request_id: str) -> RenderedResponse:
    """The response to a request that is refused: `application/problem+json` with the headers that belong to it."""
    problem = problem_of(refusal, request_id)
    headers = {"Content-Type": MEDIA_TYPE}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = CHALLENGE
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if isinstance(refusal, errors.RateLimited):
        headers["Retry-After"] = str(refusal.retry_after_seconds)
    return RenderedResponse(problem.status, headers, encode_json(problem))


def problem_of(refusal: ExchangeError, request_id: str) -> Problem:
    """The problem (RFC 9457) that describes a refusal."""
    status = STATUSES[refusal.code]
    return Problem(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=refusal.detail,
        code=refusal.code,
        request_id=request_id,
        errors=refusal.errors or msgspec.UNSET,
    )


def as_exchange_error(exception: Exception) -> ExchangeError:
    """Any exception as one of ours; those nobody foresaw are logged."""
    if isinstance(exception, ExchangeError):
        return exception
    if isinstance(exception, OperationalError | InterfaceError):
        _log.warning("database_error", error=str(exception))
        if _is_certainly_not_done(exception):
            return errors.Overloaded()
        replace_lost_connections()
        return errors.OutcomeUnknown()
    for kind, refusal in _FRAMEWORK.items():
        if isinstance(exception, kind):
            return refusal()
    _log.error("unexpected", exc_info=exception)
    return errors.InternalError()


_FRAMEWORK: dict[type[Exception], type[ExchangeError]] = {
    Http404: errors.NotFound,
    PermissionDenied: errors.ScopeMissing,
    SuspiciousOperation: errors.MalformedRequest,
    exceptions.MethodNotAllowed: errors.MethodNotAllowed,
    exceptions.UnsupportedMediaType: errors.UnsupportedMediaType,
}


def _is_certainly_not_done(exception: Exception) -> bool:
    cause = exception.__cause__
    if _had_no_connection(exception):
        return True
    if not isinstance(cause, psycopg.Error):
        return False
    failed_to_connect = cause.pgconn is not None  # set then, and only then
    return failed_to_connect or cause.sqlstate in _CERTAINLY_NOT_DONE


def _had_no_connection(exception: BaseException | None) -> bool:
    """Whether the pool had none to give."""
    return isinstance(exception, OperationalError) and isinstance(
        exception.__cause__, psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests
    )


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler400`: what it found suspicious about a request."""
    return _problem(request, errors.MalformedRequest("The request is not one that can be answered."))


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler403`."""
    return _problem(request, errors.ScopeMissing())


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's `handler404`: paths that are nobody's."""
    return _problem(request, errors.NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's `handler500`: what no view handled, such as an error in a middleware."""
    _log.exception("unexpected")
    return _problem(request, errors.InternalError())


def _problem(request: HttpRequest, refusal: ExchangeError) -> HttpResponse:
    return problem_response(refusal, request_id_of(request.META)).as_django()
