"""The workers' own timers, which run beside the messages of beat."""

from pytest_django import Settings

from config.local.processes import wait_until
from config.worker_timers import WorkerTimer
from tests.trading import TIMEOUT_SECONDS


def test_a_timer_continues_after_an_error_until_it_is_stopped(settings: Settings) -> None:
    settings.WORKER_TIMER_SECONDS = 0.01
    runs: list[None] = []

    def fail() -> None:
        runs.append(None)
        raise OSError

    timer = WorkerTimer("test", fail)
    timer.start()
    assert wait_until(lambda: len(runs) > 1, TIMEOUT_SECONDS)
    timer.stop()
    assert not timer.is_alive()
