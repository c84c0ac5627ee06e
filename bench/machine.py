"""Speed of the disk: the time of one 8 kB write with fdatasync, as PostgreSQL does at each commit."""

import os
import statistics
import time
from pathlib import Path
from typing import Any

BLOCK = bytes(8 * 1024)


def fsync_times(folder: Path, seconds: float = 2.0) -> dict[str, Any]:
    """Overwrite one block repeatedly, and return the median and 99th percentile in milliseconds."""
    times = []
    path = folder / "fsync-probe"
    file = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        os.write(file, BLOCK * 16)
        os.fsync(file)
        end = time.monotonic() + seconds
        while (started := time.monotonic()) < end:
            os.pwrite(file, BLOCK, 0)
            os.fdatasync(file)
            times.append((time.monotonic() - started) * 1_000)
    finally:
        os.close(file)
        path.unlink()
    hundredths = statistics.quantiles(times, n=100)
    return {"median_ms": round(statistics.median(times), 3), "p99_ms": round(hundredths[98], 3), "count": len(times)}
