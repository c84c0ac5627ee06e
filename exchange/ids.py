"""Times of UUIDs of version 7, which start with the millisecond of their creation."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_BITS_BELOW_TIME = 80
_LAST_MILLISECOND = 2**48 - 1
_LATEST_TIME = datetime(9999, 1, 1, tzinfo=UTC)  # a year below the maximum, so that callers can add durations


def first_id_at(moment: datetime, *, shift: timedelta = timedelta(0)) -> UUID:
    """Return the lowest id of the millisecond of `moment + shift`, which may exceed the range of datetime."""
    milliseconds = (moment - _EPOCH + shift) // _MILLISECOND
    return UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << _BITS_BELOW_TIME)


def time_of_id(id_: UUID) -> datetime:
    """Return the creation time of an id. The time in a client's id may exceed the range of datetime."""
    milliseconds = min(id_.int >> _BITS_BELOW_TIME, (_LATEST_TIME - _EPOCH) // _MILLISECOND)
    return _EPOCH + milliseconds * _MILLISECOND
