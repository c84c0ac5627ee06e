"""Reads request bodies completely, within a time limit, and only a few large ones at a time per key.

Most bodies are small. Large ones stay in memory until the response is sent, so without this limit one client could
fill the memory of a web process before its key is checked.
"""

import asyncio
from collections import Counter
from io import BytesIO

from django.conf import settings
from granian.rsgi import HTTPProtocol, ProtocolClosed  # type: ignore[attr-defined]  # re-exported from the Rust module

from exchange.errors import Overloaded
from exchange.http.authentication import bearer_key
from exchange.http.middleware import Environ
from exchange.keys import was_valid

MAX_CHUNKS = 1_024  # per body, because each chunk costs the event loop as much as a request

_LARGE_BODY_OF = "exchange.large_body_of"  # in the environ of a request with a large body: its key


class _Incomplete(BytesIO):
    """A body that did not arrive completely. Reading it raises, so that a part is not used as the body."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError("The request body is incomplete.")


class RequestBodies:
    """The request bodies of a web process. A body longer than `MAX_BODY_BYTES` is large."""

    def __init__(self) -> None:
        self._large: Counter[str] = Counter()  # by key; "" stands for all keys not known to be valid

    async def receive(self, environ: Environ, protocol: HTTPProtocol) -> None:
        """Put the body into `environ`. Reading it raises there if it is too long, incomplete or too slow.

        Raise `Overloaded` if the key has `MAX_LARGE_BODIES` large bodies already.
        """
        environ["wsgi.input"] = await self._read(environ, protocol)

    def release(self, environ: Environ) -> None:
        """Stop counting the body of a request that has its response."""
        key = environ.pop(_LARGE_BODY_OF, None)
        if key is not None:
            self._large[key] -= 1
            if not self._large[key]:
                del self._large[key]

    async def _read(self, environ: Environ, protocol: HTTPProtocol) -> BytesIO:
        length, is_chunked = environ.get("CONTENT_LENGTH", ""), "HTTP_TRANSFER_ENCODING" in environ
        if not length and not is_chunked:
            return BytesIO()
        try:
            async with asyncio.timeout(settings.WEB_BODY_TIMEOUT_SECONDS):
                if is_chunked:
                    return await self._read_chunks(environ, protocol)
                if length.isdecimal() and int(length) <= settings.MAX_BATCH_BODY_BYTES:
                    if self._admit(environ, int(length)):
                        return BytesIO(await protocol())
                    await _skip(protocol)
                    raise Overloaded
        except (TimeoutError, ProtocolClosed):
            pass
        return _Incomplete()

    async def _read_chunks(self, environ: Environ, protocol: HTTPProtocol) -> BytesIO:
        """Read up to the longest allowed body, and beyond it far enough to show that the body is too long.

        granian does not say whether the body ended or broke off. A JSON parser notices a truncated body, but not an
        empty one.
        """
        body, chunks, is_admitted = bytearray(), 0, True
        async for chunk in protocol:
            chunks += 1
            if chunks > MAX_CHUNKS:
                return _Incomplete()
            if not is_admitted:
                continue
            body += chunk
            if len(body) > settings.MAX_BATCH_BODY_BYTES:
                break
            is_admitted = self._admit(environ, len(body))
        if not is_admitted:
            raise Overloaded
        return BytesIO(body) if body else _Incomplete()

    def _admit(self, environ: Environ, length: int) -> bool:
        """Count a large body for its key. False if the key has too many."""
        if length <= settings.MAX_BODY_BYTES or _LARGE_BODY_OF in environ:
            return True
        key = bearer_key(environ) or ""
        owner = key if was_valid(key) else ""
        if self._large[owner] >= settings.MAX_LARGE_BODIES:
            return False
        self._large[owner] += 1
        environ[_LARGE_BODY_OF] = owner
        return True


async def _skip(protocol: HTTPProtocol) -> None:
    """Read and discard the rest of the body. After an early response, the client may see a closed connection."""
    chunks = 0
    async for _ in protocol:
        chunks += 1
        if chunks > MAX_CHUNKS:
            return
