"""Logs of `make run`: rotation, and a log that cannot be opened."""

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from config.local import supervisor
from config.local.processes import Child, wait_until

TIMEOUT_SECONDS = 30.0


def test_a_full_log_is_rotated_and_the_latest_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES_MAX", 5)
    log = tmp_path / "web.log"
    for number in range(supervisor.LOG_FILES_KEPT + 5):
        log.write_text(f"text {number}")
        supervisor._rotate(log)
        assert log.read_text() == ""
    kept = {path.name: path.read_text() for path in tmp_path.iterdir() if path != log}
    assert kept == {
        f"web.log.{number}": f"text {supervisor.LOG_FILES_KEPT + 5 - number}"
        for number in range(1, supervisor.LOG_FILES_KEPT + 1)
    }


def test_a_log_that_is_not_full_is_not_rotated(tmp_path: Path) -> None:
    log = tmp_path / "web.log"
    log.write_text("text")
    supervisor._rotate(log)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.processes
def test_a_log_that_cannot_be_opened_is_replaced_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    log = tmp_path / "logs" / "web.log"
    child = Child("web", [sys.executable, "-c", "print('text')"], log=log)
    supervised = supervisor.SupervisedChild(child)
    supervised.start()
    assert wait_until(lambda: not child.is_running(), TIMEOUT_SECONDS)
    (fallback,) = tmp_path.iterdir()
    assert child.last_log_line() == fallback.read_text().strip() == "text"
    assert capsys.readouterr().out == (
        f"No such file or directory: {log}. Until its next start, `web` logs to {fallback}.\n"
    )

    log.parent.mkdir()
    supervised.start()
    assert wait_until(lambda: not child.is_running(), TIMEOUT_SECONDS)
    assert log.read_text() == "text\n"
    assert capsys.readouterr().out == ""


def test_a_log_is_kept_whole_if_the_disk_has_no_space_for_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES_MAX", 5)
    log = tmp_path / "web.log"
    with log.open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).total)  # without blocks on the disk
    supervisor._rotate(log)
    assert list(tmp_path.iterdir()) == [log]
    log.unlink()
