"""Child process that kills its parent when that stops responding.

The parent writes to a pipe every second. The child counts the seconds without a byte. It does not use a clock, because
a pause of the whole machine or container must not end the processes. Runs as a script, with the standard library only.
"""

import json
import os
import select
import signal
import sys
from datetime import UTC, datetime

INTERVAL_SECONDS = 1


def main(parent: int, timeout_seconds: int) -> None:
    """Kill `parent` after this time without a byte on standard input, or return when it ends."""
    silent_seconds = 0
    while silent_seconds < timeout_seconds:
        if not select.select([sys.stdin], [], [], INTERVAL_SECONDS)[0]:
            silent_seconds += INTERVAL_SECONDS
        elif os.read(sys.stdin.fileno(), 4_096):
            silent_seconds = 0
        else:
            return
    if os.getppid() == parent:
        line = {"event": "process_killed", "process": parent, "silent_seconds": silent_seconds, "level": "error"}
        sys.stderr.write(json.dumps({**line, "timestamp": datetime.now(UTC).isoformat()}) + "\n")
        os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
