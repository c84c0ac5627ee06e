"""Run Celery with a shifted system clock: `python -m tests.stepped_clock FILE celery ARGUMENT…`.

The clock is the machine's plus the seconds that FILE contains at that moment. It is installed where beat and workers
read the time; other code uses the machine's clock.
"""

import runpy
import sys
from datetime import datetime, timedelta, tzinfo
from importlib import import_module
from pathlib import Path
from typing import Self

READERS = ["celery.app.base", "celery.worker.request", "config.celery"]


def main(file: str, module: str, *arguments: str) -> None:
    """Run a module like `python -m module arguments`, with the shifted clock."""

    class Stepped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=float(Path(file).read_text()))

    for reader in READERS:
        vars(import_module(reader))["datetime"] = Stepped
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
