"""A multiple of the sustainable load: responses, latency and memory during it, and the speed afterwards."""

import threading
from typing import Any

from bench import profiling, wrk
from bench.run import Run
from bench.venue import Venue

CLIENTS, OVERLOAD = 64, 8  # rejected clients repeat immediately, so far more than 4 times the load is offered
RECOVERY_SECONDS = 2  # later, it must be as fast as before


def measure(run: Run) -> None:
    with run.venue("overload", processes=run.best_processes()) as (venue, world):
        before = run.mix(venue, world, clients=CLIENTS, symbols=16)
        run.record("overload", "before", before | _memory(venue))
        with _Peak(venue) as peak:
            found = wrk.mix(venue.url, world, clients=CLIENTS * OVERLOAD, symbols=16, seconds=run.lengths.overload)
        rejected = sum(found["statuses"].get(status, 0) for status in ("429", "503"))
        found["faults"] -= found["statuses"].get("503", 0)  # expected here
        run.record("overload", "during", found | {"rejected": rejected, "resident_mb": peak.resident_mb})
        wrk.mix(venue.url, world, clients=CLIENTS, symbols=16, seconds=RECOVERY_SECONDS)
        after = wrk.mix(venue.url, world, clients=CLIENTS, symbols=16, seconds=run.lengths.cell)
        run.record("overload", "two seconds later", after | _memory(venue))
        venue.wait_for_deliveries()


def _memory(venue: Venue) -> dict[str, Any]:
    return {"resident_mb": profiling.resident_mb(venue.children["web"].pid or 0)}


class _Peak:
    """The peak memory of the web processes within the `with` block."""

    def __init__(self, venue: Venue) -> None:
        self.resident_mb = 0
        self._venue, self._is_over = venue, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.5):
            self.resident_mb = max(self.resident_mb, _memory(self._venue)["resident_mb"])
