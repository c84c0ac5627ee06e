"""Concurrent threads share one computation."""

import time

from exchange.http.threads import compute_once
from tests.trading import run_concurrently


def test_concurrent_threads_share_the_result_of_one_computation() -> None:
    computed = []

    @compute_once
    def compute() -> object:
        time.sleep(0.1)  # long enough for the other threads to start
        computed.append(object())
        return computed[-1]

    results = run_concurrently([compute] * 20)

    assert [compute(), *results] == computed * 21
