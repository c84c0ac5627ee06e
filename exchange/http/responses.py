"""The answer to a request, before it is encoded."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple


class Answer(NamedTuple):
    """What a request is answered with: a Struct, or whatever else msgspec encodes; or nothing."""

    body: object = None
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}
