"""Files with secrets: replaced atomically, readable by their owner only."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace the file atomically, with mode 0600 from the start."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
