"""Files with secrets in them: whole or not at all, and for their owner only."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the file at once; nobody else can read it at any moment, and nobody finds half of it."""
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
