"""What is sent piece by piece: at once, in little memory, whole or visibly broken off, and to nobody's harm."""

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from config.local.processes import wait_until
from tests import live

pytestmark = pytest.mark.django_db(transaction=True)

ANSWER_SECONDS = 10.0
AT_ONCE_SECONDS = 2.0
STREAMS, PIECE_SECONDS = 3, 2.0
SETTINGS = f"""
from config.settings import *
ROOT_URLCONF = "tests.exchange.streaming"
WEB_STREAMS = {STREAMS}
WEB_STREAM_PIECE_SECONDS = {PIECE_SECONDS}
"""
PIECE = 1_000_000  # bytes: more than pipe and sockets hold between them is a few of these


@pytest.fixture(scope="module")
def streaming(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[live.Server]:
    """A web server that streams what it is asked for."""
    folder: Path = tmp_path_factory.mktemp("streaming")
    (folder / "streaming_settings.py").write_text(SETTINGS)
    running = live.server(folder / "web.log")
    more = {"DJANGO_SETTINGS_MODULE": "streaming_settings", "PYTHONPATH": str(folder)}
    running.child.env = {**running.child.env, **more}
    try:
        running.start()
        yield running
    finally:
        running.stop()


@contextmanager
def asked(server: live.Server, query: str, method: str = "GET") -> Iterator[HTTPResponse]:
    """A stream that has begun; who reads no further is slow, and who leaves hangs up."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)) as http:
        http.request(method, f"/admin/pieces?{query}")
        with http.getresponse() as answer:
            yield answer


def status(server: live.Server, query: str) -> int:
    with asked(server, query) as answer:
        answer.read()
        return answer.status


@pytest.fixture(autouse=True)
def _no_earlier_stream(streaming: live.Server) -> None:
    """The streams of the test before have ended, so that what is counted is this test's."""
    assert wait_until(lambda: told(streaming)["begun"] == told(streaming)["ended"], ANSWER_SECONDS)


def told(server: live.Server) -> dict[str, Any]:
    """What the server has done so far; the connection that tells is not counted as in use."""
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=ANSWER_SECONDS)) as http:
        http.request("GET", "/admin/told")
        done: dict[str, Any] = json.loads(http.getresponse().read())
        return {"begun": 0, "made": 0, "ended": 0} | done


def test_a_stream_is_whole(streaming: live.Server) -> None:
    with asked(streaming, "pieces=50&size=100000") as answer:
        assert answer.read() == b"".join(str(number).rjust(100_000).encode() for number in range(1, 51))
        assert answer.headers["Transfer-Encoding"] == "chunked"


def test_the_first_piece_comes_before_the_last_is_made(streaming: live.Server) -> None:
    with asked(streaming, "size=10") as answer:  # it has no end
        assert answer.read(10) == b"         1"
    assert wait_until(lambda: told(streaming)["ended"] > 0, ANSWER_SECONDS)


def test_a_piece_is_made_when_the_one_before_was_taken(streaming: live.Server) -> None:
    """So the server holds a few of them at most, and no connection to the database."""
    before = told(streaming)
    with asked(streaming, f"pieces=100&size={PIECE}") as answer:
        assert len(answer.read(PIECE)) == PIECE
        time.sleep(PIECE_SECONDS / 2)  # for as long as it likes to go ahead
        now = told(streaming)
        assert 1 <= now["made"] - before["made"] < 20
        assert wait_until(lambda: told(streaming)["in_use"] == 0, AT_ONCE_SECONDS)
        assert len(answer.read()) == 99 * PIECE
    after = told(streaming)
    assert (after["made"] - before["made"], after["ended"] - before["ended"]) == (100, 1)
    assert after["max_kib"] - before["max_kib"] < 40_000  # 100 MB went through


@pytest.mark.parametrize("size", [1_000, PIECE])
def test_who_hangs_up_ends_it(streaming: live.Server, size: int) -> None:
    before = told(streaming)
    with asked(streaming, f"size={size}") as answer:
        answer.read(3 * size)
    assert wait_until(lambda: told(streaming)["ended"] == before["ended"] + 1, AT_ONCE_SECONDS)
    made = told(streaming)["made"]
    time.sleep(0.2)
    assert told(streaming)["made"] == made


def test_who_takes_nothing_is_cut_off_and_knows(streaming: live.Server) -> None:
    before = told(streaming)
    with asked(streaming, f"pieces=100&size={PIECE}") as answer:
        assert len(answer.read(PIECE)) == PIECE
        assert wait_until(lambda: told(streaming)["ended"] == before["ended"] + 1, PIECE_SECONDS + AT_ONCE_SECONDS)
        with pytest.raises((IncompleteRead, ConnectionError)):
            answer.read()


def test_what_fails_half_way_does_not_look_whole(streaming: live.Server) -> None:
    said = streaming.child.log.stat().st_size
    with asked(streaming, "pieces=10&size=1000&fails_at=4") as answer:
        assert answer.status == 200
        with pytest.raises((IncompleteRead, ConnectionError)):
            answer.read()
    assert wait_until(lambda: b"ZeroDivisionError" in streaming.child.log.read_bytes()[said:], AT_ONCE_SECONDS)


def test_many_streams_are_refused_and_nobody_waits_for_them(streaming: live.Server) -> None:
    with ExitStack() as stack:
        for _ in range(STREAMS):
            assert stack.enter_context(asked(streaming, f"size={PIECE}")).status == 200
        started = time.monotonic()
        with asked(streaming, f"size={PIECE}") as answer:
            assert (answer.status, json.loads(answer.read())["code"]) == (503, "overloaded")
        told(streaming)
        assert time.monotonic() - started < AT_ONCE_SECONDS
    assert wait_until(lambda: status(streaming, "pieces=1&size=1") == 200, ANSWER_SECONDS)


def test_head_makes_no_piece(streaming: live.Server) -> None:
    before = told(streaming)
    with asked(streaming, "size=1000", "HEAD") as answer:
        assert (answer.status, answer.read()) == (200, b"")
    after = told(streaming)
    assert (after["made"], after["ended"]) == (before["made"], before["ended"])


REFUSED = [("GET", {"Range": "bytes=99999999-"}, 416), ("POST", {}, 405), ("DELETE", {}, 405)]


def test_what_is_refused_of_a_file_is_told_at_once_and_never_gets_a_part_of_a_stream(streaming: live.Server) -> None:
    """Such an answer has no end of its own either: once it took the pipe of a stream beside it."""

    def refused(way: tuple[str, dict[str, str], int]) -> bool:
        method, headers, expected = way
        with closing(HTTPConnection("127.0.0.1", streaming.port, timeout=ANSWER_SECONDS)) as http:
            http.request(method, "/static/backoffice/office.css", headers=headers)
            with http.getresponse() as answer:
                return (answer.status, answer.read()) == (expected, b"")

    def whole(_: int) -> bool:
        with asked(streaming, "pieces=3&size=1000") as answer:
            if answer.status == 503:  # the place of the stream before is given back a moment after its end
                return whole(_)
            return answer.read() == b"".join(str(number).rjust(1000).encode() for number in (1, 2, 3))

    with ThreadPoolExecutor(STREAMS) as readers, ThreadPoolExecutor(6) as strangers:
        streams, refusals = readers.map(whole, range(120)), strangers.map(refused, REFUSED * 120)
        assert (all(streams), all(refusals)) == (True, True)


def test_streams_leave_nothing_behind(streaming: live.Server) -> None:
    folders = {*Path(tempfile.gettempdir()).glob("bourse-stream-*")}
    assert status(streaming, "pieces=2&size=10") == 200
    with asked(streaming, "size=1000") as answer:
        answer.read(1000)
    assert wait_until(lambda: {*Path(tempfile.gettempdir()).glob("bourse-stream-*")} <= folders, ANSWER_SECONDS)
