"""The login: limits, sessions, cookies and security headers."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from http.cookies import SimpleCookie
from importlib import import_module
from typing import Any
from urllib.parse import urlencode

import pytest
from axes.models import AccessAttempt
from django.conf import settings as real_settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.test import Client
from pytest_django import Settings

from backoffice import tasks
from backoffice.sessions import SessionStore
from config import gunicorn
from tests import api, live, trading
from tests.backoffice import users
from tests.backoffice.users import OPERATOR, VIEWER
from tests.live import ROOT

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("quick_passwords")]

PASSWORD = "quiet brown rivers"  # noqa: S105 (nobody's)
LIMIT = real_settings.LOGIN_FAILURES
INSIDE = "/admin/orders/order/"


@pytest.fixture
def olga() -> User:
    return users.user(OPERATOR, "olga", password=PASSWORD)


def attempt(name: str, password: str, address: str = "192.0.2.1", **headers: Any) -> Any:
    form = {"username": name, "password": password}
    return Client().post("/admin/login/", form, REMOTE_ADDR=address, **headers)


def fail_logins(name: str, times: int, **more: str) -> list[int]:
    """Try a wrong password several times. Return the response statuses."""
    return [attempt(name, "wrong", **more).status_code for _ in range(times)]


def pass_time(by: timedelta) -> None:
    """Move the recorded attempts into the past."""
    AccessAttempt.objects.update(attempt_time=F("attempt_time") - by)


# --- The form -------------------------------------------------------------------------------------------------------


def test_the_login_form_redirects_to_the_requested_page(olga: User) -> None:
    browser = Client(enforce_csrf_checks=True)
    page = browser.get("/admin/login/", {"next": INSIDE}).content.decode()
    fields = re.findall(r'<input[^>]* name="(\w+)"', page)
    assert set(fields) == {"csrfmiddlewaretoken", "username", "password"}
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    form = {"csrfmiddlewaretoken": token, "username": "olga", "password": PASSWORD}

    answer = browser.post(f"/admin/login/?next={INSIDE}", form)
    assert (answer.status_code, answer.headers["Location"]) == (302, INSIDE)
    assert browser.get(INSIDE).status_code == 200
    answer = Client().post("/admin/login/", form | {"next": INSIDE})
    assert (answer.status_code, answer.headers["Location"]) == (302, INSIDE)
    answer = Client().post("/admin/login/", form | {"next": "https://elsewhere.example/"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")
    answer = Client().post("/admin/login/", form)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")


# --- Limits ---------------------------------------------------------------------------------------------------------


def test_too_many_failures_lock_out_even_the_correct_password(olga: User) -> None:
    assert fail_logins("olga", LIMIT) == [200] * (LIMIT - 1) + [429]
    answer = attempt("olga", PASSWORD)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "900")
    assert "sessionid" not in answer.cookies
    content = answer.content.decode()
    assert "Logins are blocked for 15 minutes" in content
    assert "axes_reset_username" in content
    assert "office.css" in content

    users.user(VIEWER, "vera", password=PASSWORD)
    assert attempt("vera", PASSWORD).status_code == 302  # from the same address
    assert attempt("olga", PASSWORD, address="192.0.2.2").status_code == 302  # other addresses are not locked out


def test_a_lockout_is_not_extended_by_further_attempts(olga: User) -> None:
    fail_logins("olga", LIMIT)
    pass_time(real_settings.LOGIN_LOCKOUT - timedelta(seconds=30))
    assert fail_logins("olga", 2) == [429, 429]
    assert attempt("olga", PASSWORD).status_code == 429
    pass_time(timedelta(seconds=31))
    assert attempt("olga", PASSWORD).status_code == 302


def test_a_lockout_is_lifted_by_a_command(olga: User) -> None:
    fail_logins("olga", LIMIT)
    call_command("axes_reset_username", "olga")
    assert attempt("olga", PASSWORD).status_code == 302


def test_a_login_resets_the_failures_of_its_user_only(olga: User) -> None:
    fail_logins("olga", LIMIT - 1)
    fail_logins("vera", LIMIT - 1)
    assert attempt("olga", PASSWORD).status_code == 302
    assert fail_logins("olga", LIMIT - 1) == [200] * (LIMIT - 1)
    assert fail_logins("vera", 1) == [429]


def test_an_address_has_a_limit_for_all_users_together(olga: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_OF_ADDRESS = 4
    assert [fail_logins(f"name-{number}", 1) for number in range(4)] == [[200], [200], [200], [429]]
    assert attempt("olga", PASSWORD).status_code == 429
    assert attempt("olga", PASSWORD, address="192.0.2.2").status_code == 302


def test_failures_are_counted_regardless_of_the_user_agent(olga: User) -> None:
    for number in range(LIMIT - 1):
        assert fail_logins("olga", 1, HTTP_USER_AGENT=f"browser {number}") == [200]
    assert fail_logins("olga", 1, HTTP_USER_AGENT="another") == [429]


def test_behind_a_trusted_proxy_the_client_address_counts(olga: User, settings: Settings) -> None:
    there, elsewhere = ({"HTTP_X_FORWARDED_FOR": f"203.0.113.9, 198.51.100.{number}"} for number in (1, 2))
    assert fail_logins("olga", LIMIT, **there)[-1] == 429
    assert attempt("olga", PASSWORD, **elsewhere).status_code == 429  # the header is not trusted
    AccessAttempt.objects.all().delete()
    settings.TRUSTED_PROXIES = 1
    assert fail_logins("olga", LIMIT, **there)[-1] == 429
    assert attempt("olga", PASSWORD, **elsewhere).status_code == 302


@pytest.mark.parametrize("address", ["", "unknown", "[2001:db8::1]"])
def test_failures_from_an_invalid_address_are_counted(olga: User, address: str) -> None:
    assert fail_logins("olga", LIMIT, address=address)[-1] == 429
    assert attempt("olga", PASSWORD, address=address).status_code == 429


def test_an_ipv6_address_is_counted_by_its_network(olga: User) -> None:
    there, elsewhere = "2001:db8:1:2", "2001:db8:1:3"
    assert [fail_logins("olga", 1, address=f"{there}::{number}") for number in range(LIMIT)][-1] == [429]
    assert attempt("olga", PASSWORD, address=f"{there}:ffff::1").status_code == 429
    assert attempt("olga", PASSWORD, address=f"{elsewhere}::1").status_code == 302
    call_command("axes_reset_ip", f"{there}::")
    assert attempt("olga", PASSWORD, address=f"{there}::1").status_code == 302


def test_an_ipv4_mapped_address_counts_as_ipv4(olga: User) -> None:
    assert fail_logins("olga", LIMIT, address="::ffff:192.0.2.1")[-1] == 429
    assert attempt("olga", PASSWORD, address="192.0.2.1").status_code == 429
    assert attempt("olga", PASSWORD, address="::ffff:192.0.2.2").status_code == 302


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\N{SNOWMAN}", ""])
def test_no_user_name_causes_a_server_error(name: str) -> None:
    assert attempt(name, "wrong").status_code == 200


def test_a_name_that_is_too_long_is_truncated_and_counted() -> None:
    assert fail_logins("a" * 300, LIMIT)[-1] == 429


# --- Known devices --------------------------------------------------------------------------------------------------


def known_browser(name: str = "olga", address: str = "192.0.2.1") -> Client:
    """Return a browser in which the user logged in and out before."""
    browser = Client(REMOTE_ADDR=address)
    assert browser.post("/admin/login/", {"username": name, "password": PASSWORD}).status_code == 302
    browser.post("/admin/logout/")
    return browser


def log_in_again(browser: Client, name: str = "olga", password: str = PASSWORD) -> int:
    return browser.post("/admin/login/", {"username": name, "password": password}).status_code


def test_others_at_the_address_do_not_lock_out_a_known_device(olga: User, settings: Settings) -> None:
    settings.LOGIN_FAILURES_OF_ADDRESS = LIMIT + 3
    browser = known_browser()
    fail_logins("olga", LIMIT)
    for number in range(4):
        fail_logins(f"name-{number}", 1)
    assert attempt("olga", PASSWORD).status_code == 429
    assert log_in_again(browser) == 302
    assert attempt("olga", PASSWORD).status_code == 429  # other failures still count


def test_a_known_device_has_a_limit_of_its_own(olga: User) -> None:
    browser, other = known_browser(), known_browser()
    assert [log_in_again(browser, "olga", "wrong") for _ in range(LIMIT)] == [200] * (LIMIT - 1) + [429]
    assert log_in_again(browser) == 429
    assert (log_in_again(other), attempt("olga", PASSWORD).status_code) == (302, 302)


def test_a_known_device_counts_for_its_own_user_only(olga: User) -> None:
    users.user(VIEWER, "vera", password=PASSWORD)
    fail_logins("olga", LIMIT)
    browsers = [known_browser("vera") for _ in range(2)]
    assert [log_in_again(browser, "olga") for browser in browsers] == [429, 429]


def test_a_new_password_invalidates_known_devices(olga: User) -> None:
    browser, new = known_browser(), "loud green mountains"
    olga.set_password(new)
    olga.save()
    fail_logins("olga", LIMIT)
    assert log_in_again(browser, password=new) == 429


@pytest.mark.parametrize("cookie", ["", "x", "WzEsIm9sZ2EiLCIiXQ:1vPabc:forged"])
def test_a_forged_device_cookie_is_ignored(olga: User, cookie: str) -> None:
    fail_logins("olga", LIMIT)
    browser = Client(REMOTE_ADDR="192.0.2.1")
    browser.cookies["known_device"] = cookie
    assert log_in_again(browser) == 429


def test_a_known_device_expires(olga: User, settings: Settings) -> None:
    browser = known_browser()
    fail_logins("olga", LIMIT)
    settings.KNOWN_DEVICE_AGE = timedelta(seconds=-1)
    assert log_in_again(browser) == 429


def test_only_a_complete_login_sets_the_protected_device_cookie(olga: User, settings: Settings) -> None:
    settings.SESSION_COOKIE_SECURE = True
    cookie = attempt("olga", PASSWORD).cookies["known_device"]
    kept = [cookie[name] for name in ("httponly", "secure", "samesite", "path", "max-age")]
    assert kept == [True, True, "Lax", "/admin/", real_settings.KNOWN_DEVICE_AGE.total_seconds()]
    assert "known_device" not in attempt("olga", "wrong").cookies
    settings.TWO_FACTOR_REQUIRED = True
    assert "known_device" not in attempt("olga", PASSWORD).cookies


# --- Concurrent logins ----------------------------------------------------------------------------------------------

LOGINS = 40  # more than there are threads
PATIENCE_SECONDS = 60.0
AT_ONCE_SECONDS = 5.0  # with a margin for slow machines


def log_in(server: live.Server, name: str, password: str) -> HTTPResponse:
    token = "a" * 32
    form = urlencode({"username": name, "password": password, "csrfmiddlewaretoken": token})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={token}"}
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)) as client:
        client.request("POST", "/admin/login/", form, headers)
        answer = client.getresponse()
        answer.read()
    return answer


def seconds_of_an_order(server: live.Server, key: str) -> float:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    started = time.monotonic()
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)) as client:
        client.request("POST", "/orders", json.dumps(api.limit("bid", 1, "1.00")), headers)
        assert client.getresponse().status == 201
    return time.monotonic() - started


@pytest.mark.django_db(transaction=True)
def test_a_flood_of_logins_stops_no_orders_and_ends_in_a_lockout(server: live.Server, backoffice: live.Server) -> None:
    trading.instrument()
    key = trading.broker("alice")
    flood = [trading.start_thread(partial(log_in, backoffice, "olga", f"wrong {number}")) for number in range(LOGINS)]
    slowest = 0.0
    while not all(login.done() for login in flood):
        slowest = max(slowest, seconds_of_an_order(server, key))
    answers = [login.result() for login in flood]
    assert slowest < AT_ONCE_SECONDS
    assert {(answer.status, answer.headers["Retry-After"]) for answer in answers} <= {
        (200, None), (429, "900"), (503, "1")
    }  # fmt: skip
    tried = AccessAttempt.objects.get().failures_since_start
    assert LIMIT <= tried < LIMIT + gunicorn.threads  # attempts in progress when the limit was reached
    assert log_in(backoffice, "olga", PASSWORD).status == 429


@pytest.mark.django_db(transaction=True)
def test_login_cookies_are_set_and_accepted_over_a_real_connection(backoffice: live.Server) -> None:
    password = PBKDF2PasswordHasher().encode(PASSWORD, "salt")  # as the server hashes, not as this test
    User.objects.create(username="root", is_staff=True, is_superuser=True, password=password)
    with closing(HTTPConnection("127.0.0.1", backoffice.port, timeout=PATIENCE_SECONDS)) as http:
        http.request("GET", "/admin/login/")
        page = http.getresponse()
        token = SimpleCookie(page.headers["Set-Cookie"])["csrftoken"].value
        page.read()
        form = urlencode({"username": "root", "password": PASSWORD, "csrfmiddlewaretoken": token})
        named = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={token}"}
        http.request("POST", "/admin/login/?next=/admin/", form, named)
        login = http.getresponse()
        login.read()
        assert (login.status, login.headers["Location"]) == (302, "/admin/")
        cookies = [SimpleCookie(line) for line in login.headers.get_all("Set-Cookie", [])]
        assert sorted(name for cookie in cookies for name in cookie) == ["csrftoken", "known_device", "sessionid"]
        sent = "; ".join(cookie.output(header="", attrs=[]).strip() for cookie in cookies)
        http.request("GET", "/admin/", headers={"Cookie": sent})
        assert http.getresponse().status == 200


@pytest.mark.django_db(transaction=True)
def test_without_a_database_connection_pages_return_503(monkeypatch: pytest.MonkeyPatch) -> None:
    browser = users.browser(VIEWER)
    browser.raise_request_exception = False
    connection.close()
    pool = connection.pool  # type: ignore[attr-defined]  # PostgreSQL's has one
    with ExitStack() as others:
        for _ in range(pool.max_size):
            others.enter_context(pool.connection())
        monkeypatch.setattr(pool, "timeout", 0.1)
        for answer in (browser.get(INSIDE), browser.post("/admin/login/", {"username": "olga", "password": "wrong"})):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert "Try again in a few seconds" in answer.content.decode()
    monkeypatch.undo()
    assert browser.get(INSIDE).status_code == 200


# --- Sessions -------------------------------------------------------------------------------------------------------


def age_by(browser: Client, by: timedelta) -> SessionStore:
    """Age a session and write to it, as a message would."""
    session = SessionStore(browser.cookies["sessionid"].value)
    session["began"] -= by.total_seconds()
    session["written"] = True
    session.save()
    return session


def test_a_session_ends_at_a_fixed_time_regardless_of_activity() -> None:
    browser = users.browser(VIEWER)
    whole = timedelta(seconds=real_settings.SESSION_COOKIE_AGE)
    assert whole == timedelta(hours=12)
    age_by(browser, whole - timedelta(minutes=1))
    assert browser.get(INSIDE).status_code == 200
    age_by(browser, timedelta(0))
    left = Session.objects.get().expire_date - datetime.now(UTC)
    assert timedelta(0) < left <= timedelta(minutes=1)
    age_by(browser, timedelta(minutes=2))
    assert browser.get(INSIDE).headers["Location"] == f"/admin/login/?next={INSIDE}"


def test_a_login_restarts_the_session_age_and_a_new_password_does_not(olga: User) -> None:
    browser = Client()
    form = {"username": "olga", "password": PASSWORD}
    browser.post("/admin/login/", form)
    session = age_by(browser, timedelta(hours=11))
    new = "loud green mountains"
    browser.post("/admin/password_change/", {"old_password": PASSWORD, "new_password1": new, "new_password2": new})
    assert SessionStore(browser.cookies["sessionid"].value)["began"] == session["began"]
    assert browser.cookies["sessionid"].value != session.session_key
    browser.post("/admin/logout/")
    browser.post("/admin/login/", form | {"password": new})
    assert datetime.now(UTC).timestamp() - SessionStore(browser.cookies["sessionid"].value)["began"] < 60


def test_cookies_end_with_the_browser_session_and_are_http_only(olga: User) -> None:
    answer = attempt("olga", PASSWORD)
    session = answer.cookies["sessionid"]
    assert (session["expires"], session["max-age"]) == ("", "")
    for name in ("sessionid", "csrftoken"):
        assert (answer.cookies[name]["httponly"], answer.cookies[name]["samesite"]) == (True, "Lax")


def test_ended_sessions_and_old_failures_are_deleted_in_batches(settings: Settings) -> None:
    settings.CLEAN_UP_ROWS = 2
    browser = users.browser(VIEWER)
    now = datetime.now(UTC)
    for number in range(3):
        Session.objects.create(session_key=f"old-{number}", session_data="", expire_date=now - timedelta(seconds=1))
    fail_logins("old", 1)
    pass_time(real_settings.LOGIN_LOCKOUT + timedelta(seconds=1))
    fresh = {"username": "new", "ip_address": "192.0.2.1", "failures_since_start": 1}
    AccessAttempt.objects.create(**fresh)

    tasks.clean_up()
    assert Session.objects.filter(session_key__startswith="old").count() == 1
    tasks.clean_up()
    assert [each.session_key for each in Session.objects.all()] == [browser.cookies["sessionid"].value]
    assert [each.username for each in AccessAttempt.objects.all()] == ["new"]


def test_beat_schedules_the_cleanup() -> None:
    schedule = import_module("config.celery").app.conf.beat_schedule
    assert schedule["clean_up"]["task"] == "backoffice.tasks.clean_up" == tasks.clean_up.name


# --- Security headers and settings ----------------------------------------------------------------------------------

POLICY = {
    "default-src 'self'",
    "script-src 'self' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data:",
    "font-src 'self'",
    "connect-src 'self'",
    "object-src 'none'",
    "base-uri 'none'",
    "form-action 'self'",
    "frame-ancestors 'none'",
}


def test_pages_have_a_strict_content_policy_and_are_not_cached() -> None:
    browser = users.browser(VIEWER)
    for path in ("/admin/login/", "/admin/", INSIDE, "/admin/nothing/", "/stocks"):
        answer = browser.get(path)
        assert set(answer.headers["Content-Security-Policy"].split("; ")) == POLICY, path
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "no-store" in answer.headers["Cache-Control"]


def test_in_production_the_site_is_https_only(settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.SECURE_HSTS_SECONDS = 60
    browser = Client(HTTP_HOST="localhost")
    answer = browser.get("/admin/login/")
    assert (answer.status_code, answer.headers["Location"]) == (301, "https://localhost/admin/login/")
    behind = browser.get("/admin/login/", HTTP_X_FORWARDED_PROTO="https")
    assert (behind.status_code, behind.headers["Strict-Transport-Security"]) == (200, "max-age=60")


def test_forms_need_their_token() -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.get("/admin/login/")
    form = {"username": "a", "password": "b"}
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"].value}

    assert browser.post("/admin/login/", form).status_code == 403
    assert browser.post("/admin/login/", form | token).status_code == 200


@pytest.mark.parametrize("path", ["/admin/", "/admin/login/"])
def test_values_that_the_database_cannot_store_are_400(path: str) -> None:
    assert (
        Client(raise_request_exception=False).get(path, HTTP_COOKIE='sessionid="\\000abcdefghijk"').status_code == 400
    )


def production(**more: str) -> dict[str, str]:
    """Return the environment of a production process."""
    names = ("SECURE_COOKIES", "TWO_FACTOR_REQUIRED", "WEBHOOK_ADDRESSES", "DEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    return (
        kept
        | {"TRUSTED_PROXIES": "1"}
        | {"SECRET_KEY": "0123456789abcdef" * 4, "ALLOWED_HOSTS": "exchange.example.com"}
        | more
    )


def in_production(*command: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603
        [sys.executable, *command], cwd=ROOT, env=production(**more), capture_output=True, text=True, check=False
    )


@pytest.mark.processes
@pytest.mark.parametrize("process", ["api", "backoffice"])
def test_the_deployment_checks_pass(process: str) -> None:
    check = ("manage.py", "check", "--deploy", "--fail-level", "WARNING", "--settings", f"config.settings.{process}")
    done = in_production(*check)
    assert (done.returncode, "no issues" in done.stdout) == (0, True), done.stderr
    assert in_production(*check, SECURE_COOKIES="0").returncode == 1  # the checks do find problems


@pytest.mark.processes
def test_an_untrusted_proxy_causes_a_warning() -> None:
    warned = in_production("manage.py", "check", "--deploy", "--fail-level", "WARNING", TRUSTED_PROXIES="0")
    assert (warned.returncode, "backoffice.W001" in warned.stderr) == (1, True)


@pytest.mark.processes
def test_in_production_a_second_factor_is_required() -> None:
    done = in_production("-c", "from config.settings import backoffice; print(backoffice.TWO_FACTOR_REQUIRED)")
    assert done.stdout == "True\n"
