"""What every request passes: its line in the log, and headers for browsers where browsers are."""

import json
import logging
from io import StringIO

import pytest
import structlog
from django.core.management import call_command
from django.test import Client as Browser

from config.logs import LOGGING, JSONLines
from tests.exchange.client import Client

FIELDS = [
    "method", "path", "status", "milliseconds", "key", "broker", "event", "request_id", "logger", "level", "timestamp",
]  # fmt: skip


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What has been written to the log of requests."""
    formatter = JSONLines(processors=LOGGING["formatters"]["json"]["processors"])
    return [formatter.format(record) for record in caplog.records if record.name == "exchange.requests"]


def test_every_request_has_its_line(alice: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        answer = alice.get("/stocks")
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
        "request_id": answer.headers["X-Request-Id"],
        "logger": "exchange.requests",
        "level": "info",
        "timestamp": "",
    }
    assert 0 <= first["milliseconds"] < 10_000
    assert first["timestamp"].endswith("Z")
    assert (second["status"], second["key"], second["broker"], second["request_id"]) == (401, None, None, "mine")


def test_a_line_is_one_line_whatever_the_path(anonymous: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        anonymous.get("/a%0Ab%C2%85c%E2%80%A8d%22e%FF")

    (line,) = lines(caplog)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["path"] == '/a\nb\x85c\u2028d"e%FF'


def test_other_lines_of_a_request_have_its_id(anonymous: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        anonymous.get("/healthz", **{"X-Request-Id": "one"})
        anonymous.get("/healthz", **{"X-Request-Id": "two"})
        structlog.get_logger("exchange.tests").info("noticed", what=1)

    formatter = logging.Handler()
    formatter.setFormatter(
        JSONLines(
            processors=LOGGING["formatters"]["json"]["processors"],
            foreign_pre_chain=LOGGING["formatters"]["json"]["foreign_pre_chain"],
        )
    )
    noticed = json.loads(formatter.format(caplog.records[-1]))
    assert (noticed["event"], noticed["what"], noticed["request_id"]) == ("noticed", 1, "two")


def test_pages_for_browsers_are_protected_and_the_api_knows_no_cookies(alice: Client) -> None:
    everywhere = {"X-Content-Type-Options", "Referrer-Policy", "Cross-Origin-Opener-Policy", "X-Request-Id"}
    browsers = {path: Browser().get(path).headers for path in ("/admin/login/", "/docs")}
    api = {path: alice.get(path).headers for path in ("/stocks", "/healthz", "/nothing", "/administrators")}

    for headers in browsers.values():
        assert headers["X-Frame-Options"] == "DENY"
        assert everywhere <= headers.keys()
    for answer in api.values():
        assert everywhere <= answer.keys()
        assert not {"X-Frame-Options", "Set-Cookie", "Vary"} & answer.keys()
    assert "Cookie" in browsers["/admin/login/"]["Vary"]


@pytest.mark.django_db
def test_forms_of_the_admin_need_their_token() -> None:
    browser = Browser(enforce_csrf_checks=True)
    browser.get("/admin/login/")
    form = {"username": "a", "password": "b"}
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"].value}

    assert browser.post("/admin/login/", form).status_code == 403
    assert browser.post("/admin/login/", form | token).status_code == 200


def test_django_s_own_checks_are_content() -> None:
    told = StringIO()
    call_command("check", stdout=told, fail_level="WARNING")
    assert "no issues" in told.getvalue()
