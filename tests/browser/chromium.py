"""Headless Chromium that connects to this machine only."""

import shutil
import time
from base64 import b32decode
from collections.abc import Iterator
from contextlib import contextmanager

from django_otp.oath import TOTP
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

# The first one draws no window and takes a fifth less CPU time.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
REASON = "There is no Chromium here: apt-get install chromium-headless-shell"
WIDE, PHONE = ViewportSize(width=1400, height=900), ViewportSize(width=390, height=844)
TIMEOUT_MS = 15_000  # several times the limit of a page, for busy machines
_ARGUMENTS = [
    "--no-sandbox",  # required for root
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little shared memory
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser. This thread then has a running event loop; see `conftest`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def sign_in(page: Page, url: str, username: str, password: str) -> None:
    """Sign in through the form and wait for the dashboard."""
    page.goto(f"{url}/admin/")
    page.fill("[name=username]", username)
    page.fill("[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_url(f"{url}/admin/")


def code(secret: str) -> str:
    """Return the authenticator's code for the secret as shown on the page."""
    totp = TOTP(b32decode(secret.replace(" ", "")))
    totp.time = time.time()
    return f"{totp.token():06d}"
