"""`make clean`: remove `.run/` with the database, unless the exchange is running. Standard library only."""

import fcntl
import shutil
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parent.parent.parent / ".run"


def main() -> str | None:
    """Remove the folder, or return the reason for keeping it."""
    if not RUN.exists():
        return None
    with (RUN / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "The exchange is running from this folder: stop it first. Nothing was removed."
        elsewhere = RUN / "postgres"
        if elsewhere.is_symlink():  # if PostgreSQL's account cannot enter this folder
            shutil.rmtree(elsewhere.resolve(), ignore_errors=True)
        shutil.rmtree(RUN)
    return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as failure:
        sys.exit(f"{failure.strerror}: {failure.filename}. Does {RUN} belong to another user?")
