"""`python -m tests.browser.screenshots [FOLDER]`: screenshots of every page of the back office with a demo market.

The default folder is docs/images/backoffice/. The command starts its own exchange, as the bench does, and exits with 1
if a page has a fault: an error in the browser's console or an accessibility violation.
"""

import subprocess
import sys

from bench.venue import ROOT, servers, venue
from config.local.processes import LocalError, print_line
from tests.browser import demo_market
from tests.browser.chromium import PROGRAM, REASON

FOLDER = ROOT / "docs" / "images" / "backoffice"


def main(folder: str = str(FOLDER)) -> int:
    if PROGRAM is None:
        raise LocalError(REASON)
    with servers() as on:
        on.create_migrated("demo_market")
        with venue(on, "demo_market", has_brokers=False, has_backoffice=True) as running:
            market = demo_market.create(running)
            with market.trading():
                command = [sys.executable, "-m", "tests.browser.capture", running.backoffice_url, folder]
                env = {**running.env, "DJANGO_SETTINGS_MODULE": "config.settings.backoffice"}
                return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except LocalError as error:
        print_line(str(error))
        sys.exit(1)
