"""UUIDs of version 7 and their times."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import uuid_utils.compat as uuid_utils

from exchange.ids import first_id_at, time_of_id

MOMENT = datetime(2026, 2, 16, 16, 29, 0, 123_000, tzinfo=UTC)


@pytest.mark.parametrize("microseconds", [0, 499, 500, 999])
def test_the_first_id_of_a_time_is_the_first_of_its_millisecond(microseconds: int) -> None:
    first = first_id_at(MOMENT + timedelta(microseconds=microseconds))
    assert str(first) == "019c6748-a55b-0000-0000-000000000000"
    assert time_of_id(first) == MOMENT


def test_a_shift_may_exceed_the_range_of_datetime() -> None:
    assert first_id_at(MOMENT, shift=timedelta(milliseconds=1)).int - first_id_at(MOMENT).int == 1 << 80
    assert first_id_at(datetime.min.replace(tzinfo=UTC), shift=timedelta(days=-1)) == UUID(int=0)
    assert first_id_at(datetime.max.replace(tzinfo=UTC), shift=timedelta(days=1)) > first_id_at(MOMENT)


def test_an_id_is_between_the_first_ids_before_and_after_it() -> None:
    id_ = uuid_utils.uuid7()
    assert first_id_at(time_of_id(id_)) <= id_ < first_id_at(time_of_id(id_), shift=timedelta(milliseconds=1))


def test_the_time_of_any_id_leaves_a_margin_for_additions() -> None:
    assert time_of_id(UUID(int=2**128 - 1)) + timedelta(days=300) < datetime.max.replace(tzinfo=UTC)
