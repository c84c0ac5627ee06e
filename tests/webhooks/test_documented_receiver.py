"""The example receiver of docs/webhooks.md works as shown."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.local.processes import Child, wait_until
from config.local.servers import free_port
from orders.enums import Side
from tests import trading
from tests.celery_processes import Celery
from tests.live import ROOT
from webhooks import services
from webhooks.models import EventType

PATIENCE_SECONDS = 10.0


@pytest.fixture
def documented_receiver(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The receiver's URL, and the file with its output."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), re.DOTALL)
    assert len(program.strip().splitlines()) <= 20
    (tmp_path / "receiver.py").write_text(program)
    port, log = free_port(), tmp_path / "receiver.log"
    child = Child("receiver", [sys.executable, "receiver.py", str(port)], log=log, cwd=tmp_path)
    child.start()
    yield f"http://127.0.0.1:{port}/", log
    child.stop()


@pytest.mark.django_db(transaction=True)
def test_the_documented_receiver_prints_each_event(celery: Celery, documented_receiver: tuple[str, Path]) -> None:
    url, log = documented_receiver
    celery.webhook_worker().start()
    trading.broker("alice")
    trading.broker("bob")
    services.subscribe("alice", url=url, events=list(EventType))

    trading.place(Side.ASK, 3, "10", by="bob")
    bid = trading.place(Side.BID, 5, "10")
    trading.cancel(bid)

    def printed() -> set[str]:
        return {line for line in log.read_text().splitlines() if not line.startswith("127.0.0.1")}

    assert wait_until(lambda: len(printed()) == 2, PATIENCE_SECONDS), log.read_text()
    assert printed() == {f"1 trade.executed {bid.pk} partially_filled", f"2 order.cancelled {bid.pk} cancelled"}
