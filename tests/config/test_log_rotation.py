"""Rotation of the logs of `make run`."""

from pathlib import Path

import pytest

from config.local import supervisor


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
