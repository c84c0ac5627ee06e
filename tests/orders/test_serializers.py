"""The fast validation of an order accepts the bodies that the serializer accepts, with equal values."""

import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from rest_framework.serializers import Serializer, ValidationError

from exchange.errors import MalformedRequest
from exchange.http.fields import StrictSerializer
from exchange.json_codec import decode_json_object
from orders.serializers import PlaceOrderSerializer
from tests.api import LATER, LIMIT, MARKET, without

FORM = PlaceOrderSerializer()
GTD = without(LIMIT, "time_in_force") | {"expires_at": LATER}

# JSON values for the fields: valid, nearly valid and hostile.
ENUM_VALUES = [
    *['"limit"', '"market"', '"bid"', '"ask"', '"gtd"', '"gtc"', '"day"', '"ioc"', '"fok"', '"BID"', '" bid"'],
    '"bid\\n"',
]
NUMBERS = [
    *["1", "5", "10", "10.0", "10.00", "1e1", "100e-1", "0.0001", "0.00001", "10.000000", "1000000000000"],
    *["1000000000001", "0", "-0", "-0.0", "-1", "-10.5", "1e15", "1e16", "9999999999999999.9999"],
    *["99999999999999999999", "1e999", "1e-999", "1e99999999999999999999", "9" * 99, "9" * 5_000],
    "0.1000000000000000055511151231257827",
]
STRINGS = [
    *['""', '"10"', '"10.00"', '"0010"', '"-1"', '"+1"', '"1e1"', '"1_0"', '" 10"', '"10 "', '"10\\n"', '".5"', '"5."'],
    *['"NaN"', '"Infinity"', '"\u0661\u0660"', '"\uff11\uff10"', '"alice"', '"a b"', '"\u00e9"', '"AAPL"', '"aapl"'],
    *['"AAPL\\n"', '"12345678900"', '"mine"', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', f'"{"A" * 12}"'],
    *[f'"{"A" * 13}"', f'"{"a" * 65}"'],
]
TIMES = [
    *[f'"{LATER}"', '"2099-01-01t00:00:00z"', '"2099-01-01T00:00:00.123456-03:00"', '"2099-01-01T00:00:00"'],
    *['"2099-01-01T00:00:00.1230000Z"', '"2099-01-01T00:00:00.000000000+00:00"', '"2099-01-01T00:00:00+05:60"'],
    *['"2099-02-30T00:00:00Z"', '"2099-01-01T24:00:00Z"', '"2099-01-01T23:59:60Z"', '"0001-01-01T00:00:00+23:59"'],
    *['"2099-01-01T00:00:00.1234567Z"', '"2099-W01-1T00:00:00Z"', '"2099-01-01 00:00:00Z"', "4070908800"],
]
OTHERS = ["null", "true", "false", "[]", "{}", "[1]", '["bid"]', '{"bid": 1}', "[" * 50 + "]" * 50]
VALID = {
    "type": ENUM_VALUES[:2],
    "broker_id": ['"alice"', '"-_9"'],
    "document_number": ['"12345678900"', f'"{"Z" * 32}"'],
    "side": ENUM_VALUES[2:4],
    "symbol": ['"AAPL"', '"BRK.A"'],
    "price": [*NUMBERS[:8], *STRINGS[1:4], "null"],
    "quantity": ["1", "1000000000000", "7"],
    "expires_at": [*TIMES[:3], "null"],
    "time_in_force": ENUM_VALUES[4:9],
    "client_order_id": ['"a.b_c:d-e"', "null"],
}
ANYTHING = st.sampled_from([*ENUM_VALUES, *NUMBERS, *STRINGS, *TIMES, *OTHERS])
ANY_NAME = st.sampled_from([*VALID, "Price", "side ", "order_id", "\u0441ide"])


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """A JSON object of mostly valid fields, some of them missing, invalid or unknown."""
    base = draw(st.sampled_from([LIMIT, MARKET, GTD]))
    names = [*base, *draw(st.lists(st.sampled_from(sorted(VALID)), max_size=2))]
    fields = [(name, draw(st.sampled_from(VALID[name]))) for name in names if draw(st.integers(0, 20))]
    bad = draw(st.lists(st.tuples(ANY_NAME, ANYTHING), max_size=draw(st.sampled_from([0, 0, 1, 3]))))
    return "{" + ", ".join(f'"{name}": {value}' for name, value in dict([*fields, *bad]).items()) + "}"


def validated(body: Any) -> dict[str, Any] | None:
    """The values from the slow validation by Django REST framework, or None if it rejects the body."""
    try:
        values: dict[str, Any] = Serializer.run_validation(FORM, body)
    except ValidationError:
        return None
    return values


def with_types(values: dict[str, Any] | None) -> Any:
    """Values with their types and digits, so that 10 differs from 10.0 and a string from an enum member."""
    return values and {name: (type(value), repr(value)) for name, value in values.items()}


def assert_equal_validation(body: Any) -> bool:
    """Compare both validations. True if they accept the body."""
    expected = validated(body)
    assert with_types(PlaceOrderSerializer.run_fast_validation(body)) == with_types(expected), body
    return expected is not None


@settings(max_examples=500, deadline=None)
@given(bodies())
def test_fast_validation_and_serializer_accept_equal_values(body: str) -> None:
    try:
        values = decode_json_object(body.encode())
    except MalformedRequest:
        event("not JSON")
        return
    event("accepted" if assert_equal_validation(values) else "rejected")


# Values that no JSON body contains.
NOT_JSON = [10.0, 1j, b"bid", "\ud800", float("nan"), *map(Decimal, ["NaN", "sNaN", "Infinity", "-0"])]


@pytest.mark.parametrize("value", [*NOT_JSON, True, "x" * 100_000, [[]], {"bid"}, ...], ids=repr)
@pytest.mark.parametrize("name", [*VALID, "more"])
def test_no_value_passes_only_the_fast_validation(name: str, value: Any) -> None:
    for body in (LIMIT, MARKET, GTD):
        assert not assert_equal_validation(body | {name: value})


@pytest.mark.parametrize("body", [None, [], [LIMIT], "order", 1, True, {}, {"": 1}, {1: 2}], ids=repr)
def test_fast_validation_rejects_a_body_that_is_no_order(body: Any) -> None:
    assert PlaceOrderSerializer.run_fast_validation(body) is None


def test_the_largest_notional_is_accepted_and_the_next_is_not() -> None:
    most = LIMIT | {"price": 10**3, "quantity": 10**12}

    assert assert_equal_validation(most)
    assert not assert_equal_validation(most | {"price": Decimal("1000.0001")})


def test_a_valid_order_is_validated_once() -> None:
    called: set[Any] = set()
    sys.setprofile(lambda frame, what, argument: called.add(frame.f_code))
    try:
        PlaceOrderSerializer().run_validation(LIMIT)
    finally:
        sys.setprofile(None)

    assert vars(StrictSerializer)["run_fast_validation"].__func__.__code__ in called
    assert StrictSerializer.to_internal_value.__code__ not in called
