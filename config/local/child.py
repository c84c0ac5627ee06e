"""What every child process is first: a few lines that tie it to its parent, then the program itself in its place.

Run as a script, before the program and under the same process id. (`preexec_fn` would do the same between fork and
exec, which is not safe in a process with threads.) Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have Linux send this process `signal_number` when `parent` ends, however it ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signal_number)


def _become(uid: int, gid: int) -> None:
    """Give up root for this account, all its groups included."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main(parent: str, signal_number: str, account: str, *program: str) -> None:
    """Become `account` ("uid:gid", or "" to stay who we are) and then `program`."""
    if account:
        uid, gid = account.split(":")
        _become(int(uid), int(gid))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    die_with_parent(int(parent), int(signal_number))  # after the change of account, which would undo it
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(*sys.argv[1:])
