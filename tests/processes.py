"""Run the tests that start processes or a browser first; with `--quick`, leave them out and list them.

This is a plugin (`-p tests.processes`). These tests take longest and mostly wait, so that other tests run in parallel.
They have the marker `processes` or use one of `PROCESS_FIXTURES`. In a quick run, any other test that starts a process
fails.
"""

import sys
from collections import Counter
from typing import Any

import pytest

PROCESS_FIXTURES = {
    "backoffice",
    "browser",
    "celery",
    "celery_on_own_valkey",
    "impatient_backoffice",
    "server",
    "shared_worker",
    "small_server",
    "valkey",
}
PROCESS_EVENTS = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"}  # Python's audit events
LEFT_OUT = pytest.StashKey[Counter[str]]()  # number of tests by file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests that start processes or a browser")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    if config.getoption("--quick") and config.pluginmanager.has_plugin("xdist"):
        config.pluginmanager.register(_Controller(config.stash[LEFT_OUT]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    starting = [item for item in items if _starts_processes(item)]
    files = Counter(item.location[0] for item in starting)
    if config.getoption("--quick"):
        config.stash[LEFT_OUT] |= files
        config.hook.pytest_deselected(items=starting)
        items[:] = [item for item in items if not _starts_processes(item)]
        sys.addaudithook(_forbid_processes)
    elif not config.pluginmanager.has_plugin("pytest_randomly"):
        items.sort(key=lambda item: -files[item.location[0]])


def _starts_processes(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("processes") is not None or not PROCESS_FIXTURES.isdisjoint(fixtures)


def _forbid_processes(event: str, arguments: tuple[Any, ...]) -> None:
    if event in PROCESS_EVENTS:
        raise AssertionError(f"a test without the marker `processes` starts one: {arguments}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts to the controller, if this is one of its workers."""
    output = getattr(session.config, "workeroutput", None)
    left_out = session.config.stash[LEFT_OUT]
    if output is not None:
        output["left_out"] = dict(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = config.stash[LEFT_OUT]
    if left_out:
        terminalreporter.section(f"left out: {left_out.total()} tests that start processes or a browser")
        for path, count in sorted(left_out.items()):
            terminalreporter.write_line(f"{count:5} {path}")


class _Controller:
    """Plugin of the controller, which collects the equal counts of the workers."""

    def __init__(self, left_out: Counter[str]) -> None:
        self.left_out = left_out

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.left_out |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))
