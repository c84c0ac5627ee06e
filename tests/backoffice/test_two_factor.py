"""Second login step: requirement, verification, enrolment and reset."""

import re
import time
from base64 import b32decode
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django_otp.oath import TOTP
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice
from pytest_django import Settings

from backoffice import two_factor
from exchange.audit import Action
from exchange.models import AuditEntry
from tests import trading
from tests.backoffice import users
from tests.backoffice.users import ADMINISTRATOR, OPERATOR

pytestmark = pytest.mark.django_db

INSIDE = "/admin/orders/order/"
STEP, SETUP = "/admin/two-factor/", "/admin/two-factor/setup/"


def code_of(key: bytes, *, ahead: int = 0) -> str:
    """Return the authenticator's code, optionally some steps ahead."""
    totp = TOTP(key)
    totp.time = time.time() + ahead * 30
    return f"{totp.token():06d}"


def wrong_code(key: bytes) -> str:
    right = {code_of(key, ahead=steps) for steps in range(-2, 3)}
    return next(code for code in ("000000", "111111", "222222", "333333", "444444", "555555") if code not in right)


def secret_of(page: Any) -> bytes:
    """Return the secret on the enrolment page."""
    (shown,) = re.findall(r'id="secret">([A-Z2-7 ]+)<', page.content.decode())
    return b32decode(shown.replace(" ", ""))


def enrol(browser: Client, **form: str) -> tuple[bytes, Any]:
    """Enrol the browser's user. Return the authenticator's key and the response."""
    key = secret_of(browser.get(SETUP))
    return key, browser.post(SETUP, {"code": code_of(key), **form})


def codes_in(answer: Any) -> list[str]:
    return re.findall(r"<li><code>([a-z2-7 ]+)</code>", answer.content.decode())


def enrolled(role: str = OPERATOR) -> tuple[bytes, list[str]]:
    """Enrol a user. Return the key and the recovery codes."""
    key, answer = enrol(users.browser(role))
    return key, codes_in(answer)


def reset(name: str, browser: Client | None = None) -> None:
    """Reset the second factor of a user, in this browser or in another administrator's."""
    path = f"/admin/auth/user/reset-second-factor/?id={User.objects.get(username=name).pk}"
    if browser is None:
        browser = users.browser(ADMINISTRATOR, "ada")
        enrol(browser)
    assert browser.post(path, {"reason": "lost"}).status_code == 302


def end_throttling() -> None:
    """End the delay after a wrong code."""
    for model in (TOTPDevice, StaticDevice):
        for device in model.objects.filter(throttling_failure_timestamp__isnull=False):
            device.throttling_failure_timestamp -= timedelta(minutes=10)
            device.save()


def redirects_to(browser: Client, where: str, path: str = INSIDE) -> bool:
    """True if a page redirects to this step, which keeps the requested path."""
    answer = browser.get(path, follow=True)
    return bool(answer.redirect_chain) and answer.redirect_chain[-1][0] == f"{where}?next={path.replace('/', '%2F')}"


# --- Requirement ----------------------------------------------------------------------------------------------------


def test_an_optional_second_factor_is_not_requested() -> None:
    assert users.browser(OPERATOR).get(INSIDE).status_code == 200


def test_a_required_second_factor_must_be_set_up_first(settings: Settings) -> None:
    settings.TWO_FACTOR_REQUIRED = True
    browser = users.browser(OPERATOR)
    assert redirects_to(browser, SETUP)
    assert redirects_to(browser, SETUP, "/admin/")
    assert browser.get(STEP).headers["Location"] == f"{SETUP}?next=%2Fadmin%2F"
    _, answer = enrol(browser, next=INSIDE)
    assert f'href="{INSIDE}"' in answer.content.decode()
    assert browser.get(INSIDE).status_code == 200


def test_an_enrolled_user_must_verify_every_other_session() -> None:
    old, browser = users.browser(OPERATOR), users.browser(OPERATOR)
    assert old.get(INSIDE).status_code == 200
    key, _ = enrol(browser)
    assert browser.get(INSIDE).status_code == 200
    assert redirects_to(old, STEP)
    new = users.browser(OPERATOR)
    assert redirects_to(new, STEP)
    assert new.get("/admin/login/").headers["Location"] == f"{STEP}?next=%2Fadmin%2F"
    answer = new.post(STEP, {"code": code_of(key, ahead=1), "next": INSIDE})
    assert (answer.status_code, answer.headers["Location"]) == (302, INSIDE)
    assert new.get(INSIDE).status_code == 200
    assert redirects_to(old, STEP)


def test_nothing_is_shown_or_done_before_the_second_step() -> None:
    enrolled(ADMINISTRATOR)
    browser = users.browser(ADMINISTRATOR)
    other = users.user(OPERATOR)
    for path in ("/admin/", INSIDE, "/admin/password_change/", f"/admin/auth/user/remove/?id={other.pk}"):
        for answer in (browser.get(path), browser.post(path, {"reason": "x"})):
            assert answer.headers["Location"] == f"/admin/login/?next={quote(path)}"
    assert redirects_to(browser, STEP, SETUP.replace(SETUP, INSIDE))
    assert browser.get(SETUP).headers["Location"] == f"{STEP}?next=%2Fadmin%2F"  # replacing it needs verification
    key = b"k" * 20
    assert browser.post(SETUP, {"code": code_of(key)}).headers["Location"] == f"{STEP}?next=%2Fadmin%2F"
    assert User.objects.filter(pk=other.pk).exists()
    assert 'href="/admin/orders/order/"' not in browser.get(STEP).content.decode()


def test_logging_out_is_possible_before_the_second_step() -> None:
    enrolled()
    browser = users.browser(OPERATOR)
    assert browser.post("/admin/logout/").status_code == 200
    assert browser.get(STEP).headers["Location"] == f"/admin/login/?next={STEP}"


# --- Verification ---------------------------------------------------------------------------------------------------


def test_a_code_is_accepted_once() -> None:
    key, _ = enrolled()
    first, second = users.browser(OPERATOR), users.browser(OPERATOR)
    code = code_of(key, ahead=1)
    assert first.post(STEP, {"code": f" {code[:3]} {code[3:]}"}).status_code == 302
    assert second.post(STEP, {"code": code}).status_code == 200
    assert redirects_to(second, STEP)


def test_the_code_that_enrolled_is_used_up() -> None:
    browser = users.browser(OPERATOR)
    key = secret_of(browser.get(SETUP))
    code = code_of(key)
    browser.post(SETUP, {"code": code})
    other = users.browser(OPERATOR)
    assert other.post(STEP, {"code": code}).status_code == 200
    assert redirects_to(other, STEP)


def test_a_recovery_code_is_accepted_once(settings: Settings) -> None:
    settings.RECOVERY_CODES = 3
    _, codes = enrolled()
    assert len(set(codes)) == 3
    browser = users.browser(OPERATOR)
    assert browser.post(STEP, {"code": codes[0].upper()}).status_code == 302
    assert browser.get(INSIDE).status_code == 200
    other = users.browser(OPERATOR)
    assert other.post(STEP, {"code": codes[0]}).status_code == 200
    end_throttling()
    assert other.post(STEP, {"code": codes[1]}).status_code == 302
    assert StaticToken.objects.count() == 1


@pytest.mark.parametrize("of_recovery", [False, True])
def test_a_wrong_code_delays_the_next_attempt(of_recovery: bool) -> None:
    key, codes = enrolled()
    wrong, right = ("aaaaaaaa", codes[0]) if of_recovery else (wrong_code(key), code_of(key, ahead=1))
    browser = users.browser(OPERATOR)
    for _ in range(3):
        answer = browser.post(STEP, {"code": wrong})
        assert (answer.status_code, "code is invalid" in answer.content.decode()) == (200, True)
    assert browser.post(STEP, {"code": right}).status_code == 200
    end_throttling()
    assert browser.post(STEP, {"code": right}).status_code == 302


@pytest.mark.parametrize("code", ["", "abcdef", "12345", "1234567", "\0", "x" * 21, "½" * 6])
def test_malformed_codes_are_rejected(code: str) -> None:
    enrolled()
    browser = users.browser(OPERATOR)
    assert browser.post(STEP, {"code": code}).status_code == 200
    assert redirects_to(browser, STEP)


def test_codes_of_other_users_are_rejected() -> None:
    enrolled()
    key, codes = enrolled(ADMINISTRATOR)
    browser = users.browser(OPERATOR)
    for code in (code_of(key, ahead=1), codes[0]):
        assert browser.post(STEP, {"code": code}).status_code == 200
    assert redirects_to(browser, STEP)


@pytest.mark.parametrize("evil", ["https://elsewhere.example/", "//elsewhere.example/", "javascript:alert(1)", ""])
def test_the_second_step_redirects_to_own_pages_only(evil: str) -> None:
    key, _ = enrolled()
    browser = users.browser(OPERATOR)
    assert 'name="next" value="/admin/"' in browser.get(STEP, {"next": evil}).content.decode()
    answer = browser.post(STEP, {"code": code_of(key, ahead=1), "next": evil})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")


def test_the_session_gets_a_new_key_with_the_second_step() -> None:
    key, _ = enrolled()
    browser = users.browser(OPERATOR)
    before = browser.cookies["sessionid"].value
    browser.post(STEP, {"code": code_of(key, ahead=1)})
    assert browser.cookies["sessionid"].value != before
    stolen = Client()
    stolen.cookies["sessionid"] = before
    assert stolen.get(INSIDE).headers["Location"] == f"/admin/login/?next={INSIDE}"


# --- Enrolment ------------------------------------------------------------------------------------------------------


def test_enrolling_shows_the_secret_and_the_recovery_codes_once() -> None:
    browser = users.browser(OPERATOR)
    page = browser.get(SETUP)
    assert "<svg" in page.content.decode()
    key = secret_of(page)
    assert secret_of(browser.get(SETUP)) == key  # a typo does not require a new scan
    assert browser.post(SETUP, {"code": wrong_code(key)}).status_code == 200
    assert not TOTPDevice.objects.exists()

    answer = browser.post(SETUP, {"code": code_of(key)})
    assert len(codes_in(answer)) == 10
    assert "no-store" in answer.headers["Cache-Control"]
    again = browser.get(SETUP)
    assert codes_in(again) == []
    assert secret_of(again) != key
    (entry,) = AuditEntry.objects.all()
    assert (entry.action, entry.actor, entry.subject) == (Action.USER_ENROL, OPERATOR, OPERATOR)
    assert key.hex() not in str(entry.after)


def test_the_secret_is_shown_to_the_enrolling_session_only() -> None:
    """Otherwise another session with the password could read the secret before the owner enrols it."""
    keys = {secret_of(users.browser(OPERATOR).get(SETUP)) for _ in range(2)}
    assert len(keys) == 2


def test_a_new_authenticator_replaces_the_old_one_and_its_sessions() -> None:
    first = users.browser(OPERATOR)
    old_key, answer = enrol(first)
    second = users.browser(OPERATOR)
    second.post(STEP, {"code": codes_in(answer)[0]})
    assert second.get(INSIDE).status_code == 200
    key, _ = enrol(first)
    assert first.get(INSIDE).status_code == 200
    assert redirects_to(second, STEP)
    assert second.post(STEP, {"code": code_of(old_key, ahead=1)}).status_code == 200
    assert second.post(STEP, {"code": codes_in(answer)[1]}).status_code == 200
    end_throttling()
    assert second.post(STEP, {"code": code_of(key, ahead=1)}).status_code == 302


# --- Reset ----------------------------------------------------------------------------------------------------------


def test_an_administrator_resets_a_second_factor_with_a_reason() -> None:
    verified = users.browser(OPERATOR)
    enrol(verified)
    user = User.objects.get(username=OPERATOR)
    administrator = users.browser(ADMINISTRATOR)
    reset = f"/admin/auth/user/reset-second-factor/?id={user.pk}"
    assert f'href="{reset}"' in administrator.get(f"/admin/auth/user/{user.pk}/change/").content.decode()
    assert administrator.post(reset, {"reason": ""}).status_code == 200
    assert TOTPDevice.objects.count() == 1

    assert administrator.post(reset, {"reason": "lost her phone"}).status_code == 302
    assert (TOTPDevice.objects.count(), StaticToken.objects.count()) == (0, 0)
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.actor, entry.subject) == (Action.USER_RESET, ADMINISTRATOR, OPERATOR)
    assert entry.reason == "lost her phone"
    assert f'href="{reset}"' not in administrator.get(f"/admin/auth/user/{user.pk}/change/").content.decode()


@pytest.mark.parametrize("is_required", [True, False])
def test_a_reset_ends_every_session_of_the_user_and_no_other(settings: Settings, is_required: bool) -> None:
    """Otherwise a remaining session could enrol another authenticator without the password."""
    settings.TWO_FACTOR_REQUIRED = is_required
    old, verified, halfway, other = (users.browser(role) for role in [OPERATOR] * 3 + [users.VIEWER])
    enrol(verified)
    enrol(other)
    assert verified.get(INSIDE).status_code == 200
    reset(OPERATOR)
    for browser in (old, verified, halfway):
        for path in (INSIDE, STEP, SETUP):
            assert browser.get(path).headers["Location"] == f"/admin/login/?next={path}"
    assert other.get(INSIDE).status_code == 200


def test_resetting_the_own_second_factor_logs_out() -> None:
    browser = users.browser(ADMINISTRATOR)
    enrol(browser)
    reset(ADMINISTRATOR, browser)
    assert browser.get(INSIDE).headers["Location"] == f"/admin/login/?next={INSIDE}"


def test_enrolling_during_a_reset_fails(transactional_db: None) -> None:
    browser = users.browser(OPERATOR)
    enrol(browser)
    user = User.objects.get(username=OPERATOR)
    code = code_of(secret_of(browser.get(SETUP)))

    def enrol_again() -> Any:
        try:
            return browser.post(SETUP, {"code": code})
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            two_factor.reset(user, by=trading.BY, reason="lost")
            answer = pool.submit(enrol_again)  # its session still exists
            wait_for_a_blocked_session()
        assert answer.result().status_code == 400
    assert not TOTPDevice.objects.exists()
    assert browser.get(SETUP).headers["Location"] == f"/admin/login/?next={SETUP}"


def wait_for_a_blocked_session() -> None:
    for _ in range(200):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            if cursor.fetchone() == (1,):
                return
        time.sleep(0.02)
    raise AssertionError("no session waits for a lock")


@pytest.mark.parametrize("before", ["", "%2B", "%20", "0" * 10])
def test_only_superusers_reset_the_second_factor_of_a_superuser(before: str) -> None:
    """Regardless of how the ID is written."""
    enrolled(users.SUPERUSER)
    reset = f"/admin/auth/user/reset-second-factor/?id={before}{User.objects.get(username=users.SUPERUSER).pk}"
    browser = users.browser(ADMINISTRATOR)
    assert (browser.get(reset).status_code, browser.post(reset, {"reason": "x"}).status_code) == (403, 403)
    assert TOTPDevice.objects.count() == 1


@pytest.mark.parametrize("ids", ["x", "1&id=x", "99999999999", "\0", "-1", "²"])
def test_a_reset_of_an_unknown_user_is_404(ids: str) -> None:
    browser = users.browser(ADMINISTRATOR)
    assert browser.get(f"/admin/auth/user/reset-second-factor/?id={ids}").status_code == 404


def test_every_second_step_sets_the_device_cookie() -> None:
    browser = users.browser(OPERATOR)
    key, answer = enrol(browser)
    assert "known_device" in answer.cookies
    again = users.browser(OPERATOR)
    assert "known_device" not in again.post(STEP, {"code": wrong_code(key)}).cookies
    end_throttling()
    assert "known_device" in again.post(STEP, {"code": code_of(key, ahead=1)}).cookies
