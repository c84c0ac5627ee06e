"""The middleware of all requests: the request log and the security headers."""

import json
import logging

import pytest
import structlog

from config.logs import LOGGING, JSONFormatter
from tests.exchange.client import Client

FIELDS = [
    "method", "path", "status", "milliseconds", "key", "broker", "event", "request_id", "logger", "level", "timestamp",
]  # fmt: skip


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the request log."""
    formatter = JSONFormatter(processors=LOGGING["formatters"]["json"]["processors"])
    return [formatter.format(record) for record in caplog.records if record.name == "exchange.requests"]


def test_every_request_has_a_log_line(alice: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        response = alice.get("/stocks")
        Client(None).post("/orders", {}, **{"X-Request-Id": "mine"})

    first, second = (json.loads(line) for line in lines(caplog))
    assert list(first) == FIELDS
    assert alice.key is not None
    assert first | {"milliseconds": 0, "timestamp": ""} == {
        "method": "GET",
        "path": "/stocks",
        "status": 200,
        "milliseconds": 0,
        "key": alice.key.split("_")[1],
        "broker": "alice",
        "event": "request",
        "request_id": response.headers["X-Request-Id"],
        "logger": "exchange.requests",
        "level": "info",
        "timestamp": "",
    }
    assert 0 <= first["milliseconds"] < 10_000
    assert first["timestamp"].endswith("Z")
    assert (second["status"], second["key"], second["broker"], second["request_id"]) == (401, None, None, "mine")


def test_line_breaks_in_the_path_do_not_split_the_log_line(anonymous: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        anonymous.get("/a%0Ab%C2%85c%E2%80%A8d%22e%FF")

    (line,) = lines(caplog)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["path"] == '/a\nb\x85c\u2028d"e%FF'


def test_other_log_lines_of_a_request_have_its_id(anonymous: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        anonymous.get("/healthz", **{"X-Request-Id": "one"})
        anonymous.get("/healthz", **{"X-Request-Id": "two"})
        structlog.get_logger("exchange.tests").info("noticed", what=1)

    formatter = logging.Handler()
    formatter.setFormatter(
        JSONFormatter(
            processors=LOGGING["formatters"]["json"]["processors"],
            foreign_pre_chain=LOGGING["formatters"]["json"]["foreign_pre_chain"],
        )
    )
    noticed = json.loads(formatter.format(caplog.records[-1]))
    assert (noticed["event"], noticed["what"], noticed["request_id"]) == ("noticed", 1, "two")


def test_every_response_has_security_headers(alice: Client) -> None:
    everywhere = {"X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy", "X-Request-Id"}
    for path in ("/docs", "/stocks", "/healthz", "/nothing", "/admin/", "/admin/login/"):
        headers = alice.get(path).headers
        assert everywhere <= headers.keys()
        assert headers["X-Frame-Options"] == "DENY"
        assert "Cookie" not in headers.get("Vary", "")
