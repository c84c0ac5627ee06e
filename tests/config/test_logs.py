"""The log contains every line, in order, also those buffered when a process ends."""

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


def logged_lines(program: str) -> list[str]:
    """Run a program and return the events that it logs."""
    done = subprocess.run(  # noqa: S603 (our own programs)
        [sys.executable, "-c", SETTING_UP + program], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    return [json.loads(line)["event"] for line in done.stderr.splitlines()]


def test_buffered_lines_are_written_when_the_process_ends() -> None:
    assert logged_lines("for number in range(1000): log.info(str(number))") == [str(number) for number in range(1000)]


def test_a_warning_is_written_immediately_after_the_buffered_lines() -> None:
    assert logged_lines("log.info('a'); log.info('b'); log.warning('c'); log.info('lost'); os._exit(0)") == [
        "a",
        "b",
        "c",
    ]


def test_info_lines_are_written_periodically() -> None:
    assert logged_lines("log.info('a'); time.sleep(10 * logs.FLUSH_INTERVAL_SECONDS); os._exit(0)") == ["a"]


def test_a_process_of_multiprocessing_writes_its_own_lines_and_no_others() -> None:
    program = """
def log_lines(): log.info("child")
log.info("parent")
process = multiprocessing.get_context("fork").Process(target=log_lines)
process.start()
process.join()
"""
    assert sorted(logged_lines(program)) == ["child", "parent"]


def test_lines_of_many_threads_stay_whole() -> None:
    program = """
import threading
def log_lines(name):
    for number in range(500): log.info(f"{name} {number}")
threads = [threading.Thread(target=log_lines, args=(name,)) for name in "abcdefgh"]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    lines = logged_lines(program)
    for name in "abcdefgh":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(500)]
