"""Log lines: each of them, in order, also those that were still waiting when a process ended."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parent.parent.parent
SETTING_UP = """
import logging, logging.config, multiprocessing, os, sys, time
from config import logs
logging.config.dictConfig(logs.LOGGING)
log = logging.getLogger("test")
"""


def told(program: str) -> list[str]:
    """What a program says on standard error, line by line."""
    done = subprocess.run(  # noqa: S603 (programs of our own)
        [sys.executable, "-c", SETTING_UP + program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    return [json.loads(line)["event"] for line in done.stderr.splitlines()]


def test_what_waits_is_written_when_the_process_ends() -> None:
    assert told("for number in range(1000): log.info(str(number))") == [str(number) for number in range(1000)]


def test_a_warning_is_written_at_once_after_what_came_before() -> None:
    assert told("log.info('a'); log.info('b'); log.warning('c'); log.info('lost'); os._exit(0)") == ["a", "b", "c"]


def test_what_is_told_is_written_before_long() -> None:
    assert told("log.info('a'); time.sleep(10 * logs.PAUSE_SECONDS); os._exit(0)") == ["a"]


def test_a_process_of_multiprocessing_writes_its_own_lines_and_no_others() -> None:
    program = """
def tell(): log.info("child")
log.info("parent")
process = multiprocessing.get_context("fork").Process(target=tell)
process.start()
process.join()
"""
    assert sorted(told(program)) == ["child", "parent"]


def test_lines_of_many_threads_stay_whole() -> None:
    program = """
import threading
def tell(name):
    for number in range(500): log.info(f"{name} {number}")
threads = [threading.Thread(target=tell, args=(name,)) for name in "abcdefgh"]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    lines = told(program)
    for name in "abcdefgh":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(500)]
