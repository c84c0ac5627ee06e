"""Chromium without a window, which talks to this machine and to nobody else."""

import shutil
import time
from base64 import b32decode
from collections.abc import Iterator
from contextlib import contextmanager

from django_otp.oath import TOTP
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

# The first has no window to draw, and takes a fifth less of the processor's time.
PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, PROGRAMS)), None)
REASON = "There is no Chromium here: apt-get install chromium-headless-shell"
WIDE, PHONE = ViewportSize(width=1400, height=900), ViewportSize(width=390, height=844)
PATIENCE_MS = 15_000  # several times what a page may take, on a machine that has other things to do
_ARGUMENTS = [
    "--no-sandbox",  # for root, who has none
    "--disable-gpu",
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. In here this thread has an event loop that runs: see `conftest`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def sign_in(page: Page, url: str, username: str, password: str) -> None:
    """Through the form, as anybody; on the dashboard then."""
    page.goto(f"{url}/admin/")
    page.fill("[name=username]", username)
    page.fill("[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_url(f"{url}/admin/")


def code(secret: str) -> str:
    """What an authenticator shows that has this secret, as the page writes it."""
    totp = TOTP(b32decode(secret.replace(" ", "")))
    totp.time = time.time()
    return f"{totp.token():06d}"
