"""Formats of requests and responses, independent of their fields (contract: "Conventions")."""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.test import override_settings
from hypothesis import assume, given
from hypothesis import strategies as st
from psycopg import errors as postgres
from psycopg_pool import PoolTimeout
from rest_framework import serializers

from config.local.processes import wait_until
from exchange import services
from exchange.errors import ExchangeError, FieldError, MalformedRequest
from exchange.http.fields import MAX_ERRORS, StrictList, Timestamp, field_errors, validate
from exchange.http.problems import STATUSES, as_exchange_error
from exchange.json_codec import decode_json_object
from exchange.models import Broker, Instrument
from exchange.serializers import InitialHoldingSerializer, ListInstrumentSerializer
from tests.exchange.client import ApiResponse, Client

TIMEOUT_SECONDS = 30.0
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

HUGE = b"9" * 5000  # more digits than Python's int() accepts
EMPTY, TRUNCATED = "The body is empty.", "The body is not JSON: Input data was truncated."
NOT_AN_OBJECT, TOO_DEEP = "The body must be a JSON object.", "The body is nested too deeply."
TOO_MANY = "The body may have at most 10000 objects and lists."
HALF_A_PAIR, INVALID = "An escape in the body is half of a surrogate pair.", "The body is not JSON: invalid character"
REPEATED = 'An object in the body has the name "symbol" more than once.'
MALFORMED = {  # a body, and how the detail begins
    "nothing": (b"", EMPTY),
    "white space": (b" " * 64 * 1024, EMPTY),
    "line breaks and tabs": (b"\r\n\t", EMPTY),
    "half": (b'{"symbol": "AAPL"', TRUNCATED),
    "half an escape": (b'{"symbol": "\\ud8', TRUNCATED),
    "two": (b'{"symbol": "AAPL"} {}', "The body is not JSON: trailing characters (byte 20)."),
    "a list": (b"[]", NOT_AN_OBJECT),
    "a string": (b'"AAPL"', NOT_AN_OBJECT),
    "null": (b"null", NOT_AN_OBJECT),
    "a number": (b"1", NOT_AN_OBJECT),
    "not UTF-8": (b'{"symbol": "\xff"}', "The body is not UTF-8 (byte 12)."),
    "Latin-1": ('{"symbol": "é"}'.encode("latin-1"), "The body is not UTF-8 (byte 12)."),
    "an encoded surrogate": (b'{"symbol": "\xed\xa0\x80"}', "The body is not UTF-8 (byte 12)."),
    "UTF-16": ('{"symbol": "AAPL"}'.encode("utf-16"), "The body is not UTF-8 (byte 0)."),
    "a byte order mark": (b'\xef\xbb\xbf{"symbol": "AAPL"}', INVALID),
    "half a surrogate pair": (b'{"symbol": "\\ud800"}', HALF_A_PAIR),
    "the other half": (b'{"symbol": "x\\udc00"}', HALF_A_PAIR),
    "two first halves": (b'{"\\ud800\\ud800": 1}', HALF_A_PAIR),
    "half a surrogate pair beside a huge integer": (b'{"x": ' + HUGE + b', "\\ud800": 1}', HALF_A_PAIR),
    "NaN beside a huge integer": (b'{"x": ' + HUGE + b', "symbol": NaN}', "The body is not JSON: NaN is not JSON."),
    "a nesting bomb": (b"[" * 2000 + b"]" * 2000, TOO_DEEP),
    "a nesting bomb inside": (b'{"symbol": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", TOO_MANY),
    "an object bomb": (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, TOO_DEEP),
    "NaN": (b'{"symbol": NaN}', INVALID),
    "a comment": (b'{"symbol": "AAPL"} // hello', "The body is not JSON: trailing characters (byte 20)."),
    "single quotes": (b"{'symbol': 'AAPL'}", "The body is not JSON: object keys must be strings (byte 1)."),
    "form data": (b"symbol=AAPL", INVALID),
    "more lists than a body may have": (b'{"symbol": [' + b"[]," * 10_000 + b"1]}", TOO_MANY),
    "more objects than a body may have": (b'{"symbol": [' + b"{}," * 10_000 + b"1]}", TOO_MANY),
    "a repeated name": (b'{"symbol": "AAPL", "symbol": "AAPL"}', REPEATED),
    "a repeated name, once escaped": (b'{"symbol": "AAPL", "\\u0073ymbol": "PETR4"}', REPEATED),
    "a repeated name, with escaped quotes": (b'{"symbol": "\\u0022\\u0022", "symbol": "\\\\\\""}', REPEATED),
    "a repeated name inside": (b'{"x": [{"symbol": 1, "symbol": {}}]}', REPEATED),
    "a repeated name beside a huge integer": (b'{"symbol": ' + HUGE + b', "symbol": 1}', REPEATED),
    "half a surrogate pair as a repeated name": (b'{"\\ud800": 1, "\\ud800": 2}', "An object in the body has the name"),
}


@pytest.mark.parametrize(("body", "detail"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_body_that_is_not_a_json_object_is_malformed(operator: Client, body: bytes, detail: str) -> None:
    response = operator.post("/stocks", body)

    assert (response.status, response.code) == (400, "malformed_request")
    assert response.body["detail"].startswith(detail)
    assert not Instrument.objects.exists()


NAMES = st.sampled_from(["a", "b", '"', "\\", '\\"', "é", ""])
VALUES = st.recursive(
    NAMES | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=3).map(tuple),
    max_leaves=10,
)


def written(value: Any, escape: Callable[[str], str]) -> str:
    """JSON of a value in which a tuple of pairs is an object that may repeat a name."""
    if isinstance(value, tuple):
        return "{" + ",".join(f"{escape(name)}:{written(inner, escape)}" for name, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inner, escape) for inner in value) + "]"
    return escape(value) if isinstance(value, str) else json.dumps(value)


def repeats_a_name(value: Any) -> bool:
    if isinstance(value, tuple):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(repeats_a_name(inner) for _, inner in value)
    return isinstance(value, list) and any(map(repeats_a_name, value))


def in_escapes(text: str) -> str:
    return '"' + "".join(f"\\u{ord(each):04x}" for each in text) + '"'


@pytest.mark.parametrize("escape", [json.dumps, in_escapes])
@given(st.lists(st.tuples(NAMES, VALUES), max_size=4).map(tuple))
def test_a_body_is_rejected_exactly_if_an_object_repeats_a_name(escape: Callable[[str], str], value: Any) -> None:
    body = written(value, escape).encode()
    if repeats_a_name(value):
        with pytest.raises(MalformedRequest, match="more than once"):
            decode_json_object(body)
    else:
        assert decode_json_object(body) == json.loads(body)


def test_a_long_body_is_rejected_with_the_same_details(alice: Client) -> None:
    """A batch may be longer than other bodies."""
    padding, path = " " * settings.MAX_BODY_BYTES, "/orders/batch"
    assert alice.post(path, f'{{"orders": ["\\ud800"]}}{padding}'.encode()).body["detail"] == HALF_A_PAIR
    assert alice.post(path, f'{{"orders": [], "symbol": 1, "symbol": 1}}{padding}'.encode()).body["detail"] == REPEATED
    huge = alice.post(path, b'{"orders": [' + HUGE + b"]}" + padding.encode())
    assert huge.body["detail"] == "An integer in the body has too many digits."


def test_a_list_field_has_details_in_the_words_of_json(operator: Client, alice: Client) -> None:
    def details(response: ApiResponse) -> list[str]:
        return [error["detail"] for error in response.body["errors"]]

    holdings: dict[str, Any] = {"broker_id": "b", "initial_cash": 0, "initial_holdings": {}}
    assert details(operator.post("/brokers", holdings)) == ["Must be a list."]
    assert details(operator.post("/brokers/alice/keys", {"scopes": []})) == ["Must have at least 1 item."]
    assert details(alice.post("/orders/batch", {"orders": "x"})) == ["Must be a list."]
    assert details(alice.post("/orders/batch", {"orders": []})) == ["Must have at least 1 item."]
    assert details(alice.post("/orders/batch", {"orders": [1] * 501})) == ["May have at most 500 items."]


def test_a_body_may_have_64_kib(operator: Client) -> None:
    body = b'{"symbol": "AAPL"}'

    assert operator.post("/stocks", body.ljust(64 * 1024 + 1)).code == "too_large"
    assert operator.post("/stocks", body.ljust(64 * 1024 + 1)).status == 413
    assert operator.post("/stocks", body.ljust(64 * 1024)).status == 201


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "*/*", ""]
)
def test_a_body_must_have_the_json_media_type(operator: Client, media_type: str) -> None:
    response = operator.post("/stocks", b'{"symbol": "AAPL"}', content_type=media_type)

    assert (response.status, response.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "gzip, identity", "x-unknown"])
def test_a_body_with_a_content_encoding_is_rejected(operator: Client, coding: str) -> None:
    body = b'{"symbol": "AAPL"}'
    for content in (body, gzip.compress(body)):
        response = operator.post("/stocks", content, **{"Content-Encoding": coding})
        assert (response.status, response.code) == (415, "unsupported_media_type")
        assert response.headers["Accept-Encoding"] == "identity"
        assert response.body["detail"] == "Send the body without a Content-Encoding."
    assert not Instrument.objects.exists()


@pytest.mark.parametrize("coding", ["identity", "Identity", "identity, identity", ""])
def test_a_body_may_have_the_identity_encoding(operator: Client, coding: str) -> None:
    assert operator.post("/stocks", {"symbol": "AAPL"}, **{"Content-Encoding": coding}).status == 201
    assert operator.post("/stocks/AAPL/halt", **{"Content-Encoding": "gzip"}).status == 200  # without a body
    assert operator.get("/stocks", **{"Content-Encoding": "gzip"}).status == 200


@pytest.mark.parametrize("accept", ["text/html", "application/xml;q=0", "nonsense", ""])
def test_the_response_is_json_for_any_accept_header(operator: Client, accept: str) -> None:
    response = operator.get("/stocks", Accept=accept)

    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")


def test_a_problem_has_every_member(operator: Client) -> None:
    response = operator.get("/stocks/NONE")
    request_id = response.headers["X-Request-Id"]

    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.body == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "No instrument NONE is listed.",
        "code": "symbol_not_found",
        "request_id": request_id,
    }
    assert UUID.fullmatch(request_id)


def test_invalid_fields_are_listed_with_code_and_detail(operator: Client) -> None:
    body = operator.post("/stocks", {"symbol": "aapl"}).body

    assert body["errors"] == [{"field": "symbol", "code": "pattern", "detail": "Must match ^[A-Z0-9][A-Z0-9.]{0,11}$."}]


@given(st.datetimes(timezones=st.just(UTC)), st.integers(-24 * 60 + 1, 24 * 60 - 1), st.integers(0, 9))
def test_a_time_is_read_exactly(local: datetime, offset: int, decimals: int) -> None:
    assume(1 < local.year < 9999)  # so that the time in UTC exists
    digits = f"{local.microsecond:06d}000"[:decimals]
    hours, minutes = divmod(abs(offset), 60)
    text = local.replace(microsecond=0, tzinfo=None).isoformat() + (f".{digits}" if digits else "")
    text += f"{'-' if offset < 0 else '+'}{hours:02d}:{minutes:02d}"

    expected = local.replace(microsecond=int(digits[:6].ljust(6, "0"))) - timedelta(minutes=offset)
    assert Timestamp().run_validation(text) == expected


def code_of(text: str) -> str:
    """The code of an invalid time."""
    with pytest.raises(serializers.ValidationError) as rejection:
        Timestamp().run_validation(text)
    (error,) = field_errors(rejection.value.detail)
    return error.code


@pytest.mark.parametrize(
    "offset", ["+05:60", "-05:60", "+00:99", "+23:60", "+24:00", "-24:00", "+99:00", "+5:00", "+0500", "+05", "+05:00Z"]
)
def test_a_time_with_an_invalid_offset_is_rejected(offset: str) -> None:
    assert code_of(f"2030-01-01T00:00:00{offset}") == "invalid"


@pytest.mark.parametrize(
    ("decimals", "code"),
    [("1234567", "too_precise"), ("123456001", "too_precise"), ("1230000000", "invalid"), ("", "invalid")],
)
def test_a_time_with_too_many_decimals_is_rejected(decimals: str, code: str) -> None:
    assert code_of(f"2030-01-01T00:00:00.{decimals}Z") == code


def test_many_unknown_fields_have_a_short_response(operator: Client) -> None:
    response = operator.post("/stocks", {f"{n}{'x' * 100}": n for n in range(400)})

    assert response.status == 400
    assert len(response.content) < 10_000


def test_a_body_with_the_maximum_number_of_containers_is_validated(operator: Client) -> None:
    body = b'{"symbol": [' + b"{}," * 9_998 + b"1]}"

    assert operator.post("/stocks", body).fields == {"symbol": "invalid"}


class CountedNames(dict[str, Any]):
    """A JSON object that counts the names that were checked."""

    checked = 0

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self.checked += 1
            yield name


def test_unknown_fields_are_checked_until_the_response_is_full() -> None:
    body, errors = CountedNames({f"x{n}": n for n in range(100_000)}), list[FieldError]()
    validate(ListInstrumentSerializer, body, errors)

    assert [error.field for error in errors] == ["symbol", *(f"x{n}" for n in range(MAX_ERRORS - 1))]
    assert body.checked <= MAX_ERRORS


def test_items_of_a_list_are_checked_until_the_response_is_full() -> None:
    items: Iterator[dict[str, Any]] = iter([{}] * 10_000)
    with pytest.raises(serializers.ValidationError) as rejection:
        StrictList(child=InitialHoldingSerializer()).run_child_validation(items)

    assert len(field_errors(rejection.value.detail)) == MAX_ERRORS
    assert len(list(items)) == 10_000 - MAX_ERRORS


def test_duplicate_symbols_are_named_until_the_response_is_full(operator: Client) -> None:
    body = {"broker_id": "a", "initial_cash": 1, "initial_holdings": [{"symbol": "A", "quantity": 1}] * 1_000}
    response = operator.post("/brokers", body)

    assert response.fields == {f"initial_holdings.{n}.symbol": "duplicate" for n in range(1, MAX_ERRORS + 1)}


def test_many_unknown_parameters_have_a_short_response(operator: Client) -> None:
    response = operator.get("/stocks?" + "&".join(f"x{n}=1" for n in range(900)))

    assert response.fields == {f"x{n}": "unknown_parameter" for n in range(MAX_ERRORS)}


def test_fields_and_parameters_share_the_limit_of_errors(operator: Client) -> None:
    body = {"symbol": "AAPL"} | {f"x{n}": n for n in range(MAX_ERRORS - 1)}
    response = operator.post("/stocks?y=1&z=1", body)

    assert list(response.fields) == [*(f"x{n}" for n in range(MAX_ERRORS - 1)), "y"]


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/stocks/", "/stocks/aapl", "/stocks/A%00", "/%ff%fe", "//", "/orders/1"]
)
def test_an_unknown_path_is_a_problem_with_or_without_a_key(operator: Client, anonymous: Client, path: str) -> None:
    for client in (operator, anonymous):
        response = client.get(path)
        assert (response.status, response.code) == (404, "not_found")
        assert response.headers["X-Request-Id"] == response.body["request_id"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"])
def test_unsupported_methods_are_rejected_with_the_supported_ones(operator: Client, method: str) -> None:
    response = operator.request(method, "/stocks")

    assert (response.status, response.code) == (405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, POST, HEAD"


def test_head_is_get_without_a_body(operator: Client) -> None:
    response = operator.request("HEAD", "/stocks")

    assert (response.status, response.content) == (200, b"")


def test_a_query_with_too_many_parameters_is_rejected_for_that(operator: Client) -> None:
    response = operator.get("/stocks?" + "&".join(f"x{n}=1" for n in range(1_001)))

    assert (response.status, response.code) == (400, "malformed_request")
    assert response.body["detail"] == "The query has too many parameters."


@pytest.mark.parametrize(
    "query", ["x=%00", "%00=1", "%ff%fe=1", "=", "limit=%00", "cursor=%00", "a[]=1", "x=1&x=2", "x" * 5000]
)
def test_a_malformed_query_is_a_validation_error(operator: Client, query: str) -> None:
    assert operator.get(f"/stocks?{query}").code == "validation_error"


def test_a_valid_request_id_of_the_client_is_used(operator: Client) -> None:
    assert operator.get("/stocks", **{"X-Request-Id": "abc.DEF-1_2"}).headers["X-Request-Id"] == "abc.DEF-1_2"
    for odd in ["", "a b", "a" * 65, "é", 'a"', "a\n"]:
        assert UUID.fullmatch(operator.get("/stocks", **{"X-Request-Id": odd}).headers["X-Request-Id"])


def test_an_unexpected_exception_is_a_problem_with_status_500(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "get_instrument", lambda symbol: 1 // 0)
    response = operator.get("/stocks/AAPL")

    assert (response.status, response.code) == (500, "internal_error")
    assert b"Zero" not in response.content


@override_settings(ALLOWED_HOSTS=["elsewhere"])
def test_an_unknown_host_causes_no_error(anonymous: Client) -> None:
    assert anonymous.get("/healthz", Host="x" * 300).status < 500


def _wrapped(kind: type[Exception], cause: BaseException) -> Exception:
    error = kind("it failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (_wrapped(OperationalError, postgres.LockNotAvailable()), "overloaded"),
        (_wrapped(OperationalError, postgres.QueryCanceled()), "overloaded"),
        (_wrapped(OperationalError, postgres.DeadlockDetected()), "overloaded"),
        (_wrapped(OperationalError, PoolTimeout()), "overloaded"),
        (_wrapped(OperationalError, postgres.AdminShutdown()), "outcome_unknown"),
        (_wrapped(OperationalError, postgres.OperationalError("server closed the connection")), "outcome_unknown"),
        (_wrapped(InterfaceError, postgres.InterfaceError()), "outcome_unknown"),
        (InterfaceError("connection already closed"), "outcome_unknown"),
    ],
)
def test_database_errors_are_overloaded_only_if_nothing_was_executed(error: Exception, code: str) -> None:
    assert as_exchange_error(error).code == code


def test_overloaded_has_a_retry_after_header(operator: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(symbol: str) -> None:
        raise _wrapped(OperationalError, postgres.LockNotAvailable())

    monkeypatch.setattr(services, "get_instrument", busy)
    response = operator.get("/stocks/AAPL")

    assert (response.status, response.code, response.headers["Retry-After"]) == (503, "overloaded", "1")


def test_every_code_has_a_status() -> None:
    assert {kind.code for kind in _kinds(ExchangeError)} == STATUSES.keys()


def _kinds(base: type[ExchangeError]) -> list[type[ExchangeError]]:
    return [found for kind in base.__subclasses__() for found in [kind, *_kinds(kind)]]


def test_readiness_needs_the_database_and_its_migrations(anonymous: Client, no_cached_readiness: None) -> None:
    from django.db.migrations.recorder import MigrationRecorder

    response = anonymous.get("/readyz")
    assert response.status == 200
    assert list(response.body) == ["database", "valkey", "beat_age_seconds", "worker_age_seconds"]
    assert response.body["database"] is True

    MigrationRecorder.Migration.objects.filter(app="exchange", name="0001_initial").delete()
    assert wait_until(lambda: anonymous.get("/readyz").status == 503, TIMEOUT_SECONDS)
    assert anonymous.get("/readyz").body["database"] is False


def test_hostile_values_are_rejected_without_a_write(operator: Client) -> None:
    hostile: list[Any] = [
        "\0",
        "' OR 1=1 --",
        "\u202e",
        "\U0001d7d9",
        {"$gt": ""},
        ["a"],
        10**30,
        -1,
        1.5,
        True,
        None,
        "",
    ]
    for value in hostile:
        for body in ({"broker_id": value, "initial_cash": 1}, {"broker_id": "a", "initial_cash": value, "x": value}):
            assert operator.post("/brokers", body).status == 400
    assert not Broker.objects.exists()
