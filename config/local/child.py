"""Launcher of a child process: ties it to its parent, then replaces itself with the program.

It runs as a script with the process id of the program. `preexec_fn` would do the same between fork and exec, which is
not safe in a process with threads. Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have Linux send this process `signal_number` when `parent` ends, even if it is killed."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal_number)


def _switch_user(uid: int, gid: int) -> None:
    """Switch from root to this account, without supplementary groups."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main(parent: str, signal_number: str, account: str, *program: str) -> None:
    """Switch to `account` ("uid:gid", or "" for no switch) and execute `program`."""
    if account:
        uid, gid = account.split(":")
        _switch_user(int(uid), int(gid))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    die_with_parent(int(parent), int(signal_number))  # last, since a switch of the account resets it
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(*sys.argv[1:])
