"""`python -m bench.backoffice`: measure every page of the back office over a million orders, trades and deliveries.

It starts its own PostgreSQL and Valkey, loads a history, and prints the time and queries of each page. It exits with 1
if a page makes 20 queries or more, or takes 500 ms or more.
"""

import argparse
import subprocess
import sys

from bench.history import load_history
from bench.venue import ROOT, environment, servers
from config.local.processes import print_line

DATABASE = "backoffice"
MILLION = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.backoffice", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--rows", type=int, default=MILLION, help="orders, trades and deliveries, each")
    rows = parser.parse_args().rows
    with servers() as on:
        on.create_migrated(DATABASE)
        url = on.postgres.url(DATABASE)
        print_line(f"Loading {rows:,} orders, trades and deliveries each ...")
        load_history(url, orders=rows, trades=rows, deliveries=rows, resting=min(rows, 20_000))
        env = environment(url, on.valkey_url()) | {"DJANGO_SETTINGS_MODULE": "config.settings.backoffice"}
        command = [sys.executable, "-m", "bench.page_times"]
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
