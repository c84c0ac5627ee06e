"""Rules of HTTP that granian does not check. A request that breaks one is malformed, whatever it asks for."""

import re
from collections.abc import Mapping
from typing import Any

from exchange.errors import MalformedRequest

# A host name or address with a port, or nothing. A repeated header is joined with commas and does not match.
_HOST = re.compile(r"([A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?")


def check_http(environ: Mapping[str, Any]) -> None:
    """Raise `MalformedRequest` for a wrong `Host` (RFC 9112, section 3.2) or transfer coding (section 6.1)."""
    host = environ.get("HTTP_HOST")
    if host is None and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
        raise MalformedRequest("Send a Host header.")
    if host is not None and not _HOST.fullmatch(host):
        raise MalformedRequest("Send one Host header, with a host name or address.")
    coding = environ.get("HTTP_TRANSFER_ENCODING", "chunked")
    if coding.lower() != "chunked":
        raise MalformedRequest("Send the body without a Transfer-Encoding other than chunked.")


def is_health_check(environ: Mapping[str, Any]) -> bool:
    """True for the requests of load balancers, which have no rate limit."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    return method in ("GET", "HEAD") and path in ("/healthz", "/readyz") and not environ["QUERY_STRING"]
