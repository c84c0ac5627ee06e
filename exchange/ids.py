"""Ids are UUIDs of version 7: they begin with the millisecond in which they were made."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_BITS_BELOW_THE_TIME = 80
_LAST_MILLISECOND = 2**48 - 1
_LAST_MOMENT = datetime(9999, 1, 1, tzinfo=UTC)  # a year before the last, for sums


def first_id_at(moment: datetime, *, shift: timedelta = timedelta(0)) -> UUID:
    """The lowest id of the millisecond of `moment + shift`, which may be beyond what a datetime can be."""
    milliseconds = (moment - _EPOCH + shift) // _MILLISECOND
    return UUID(int=min(max(milliseconds, 0), _LAST_MILLISECOND) << _BITS_BELOW_THE_TIME)


def time_of_id(id_: UUID) -> datetime:
    """The millisecond in which an id was made; an id from a request may name a time after all datetimes."""
    milliseconds = min(id_.int >> _BITS_BELOW_THE_TIME, (_LAST_MOMENT - _EPOCH) // _MILLISECOND)
    return _EPOCH + milliseconds * _MILLISECOND
