"""`python -m tools.replay`: parsing of its files, and replays of invented and real order flow."""

import io
import json
import socket
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from exchange import services
from exchange.rules import Scope
from orders.enums import Side
from tests.orders.conftest import _check_invariants  # noqa: F401 (a fixture)
from tests.trading import BY
from tools.replay.__main__ import main
from tools.replay.files import BookLevel, Message, MessageType, parse_book, parse_message

ROOT = Path(__file__).resolve().parents[2]
REAL_FLOW = ROOT.parent / "shared" / "data"
REAL_MESSAGES = REAL_FLOW / "aapl-2012-06-21-messages.csv"
REAL_BOOK = REAL_FLOW / "aapl-2012-06-21-book.csv"

Levels = list[tuple[int, int]]


def book_row(bids: Levels, asks: Levels) -> str:
    """Return a row of the book file from `(price, size)` pairs, best first, padded with the format's dummies."""
    bids, asks = bids + [(-9999999999, 0)] * 10, asks + [(9999999999, 0)] * 10
    return ",".join(f"{a[0]},{a[1]},{b[0]},{b[1]}" for a, b in zip(asks[:10], bids[:10], strict=True))


# Every message type, and orders from before the first row (77 and 88). The exchange fills the seeded order first where
# the file filled order 2, so too little is left of order 77 for its cancel.
FLOW: list[tuple[str, Levels, Levels]] = [
    ("1,1,10,1000000,1", [(1000000, 15)], [(1010000, 20)]),
    ("1,2,5,1010000,-1", [(1000000, 15)], [(1010000, 25)]),
    ("4,2,5,1010000,-1", [(1000000, 15)], [(1010000, 20)]),
    ("3,77,20,1010000,-1", [(1000000, 15)], [(1020000, 7)]),  # the level at 102 appears: the only seed
    ("2,88,3,1000000,1", [(1000000, 12)], [(1020000, 7)]),
    ("5,0,100,1005000,1", [(1000000, 12)], [(1020000, 7)]),
    ("2,1,4,1000000,1", [(1000000, 8)], [(1020000, 7)]),
    ("3,1,6,1000000,1", [(1000000, 2)], [(1020000, 7)]),
    ("4,88,2,1000000,1", [], [(1020000, 7)]),
    ("1,9,1,990001,1", [(990001, 1)], [(1020000, 7)]),
]
MESSAGES = [f"34200.{number},{message}" for number, (message, _, _) in enumerate(FLOW)]
BOOKS = [book_row(bids, asks) for _, bids, asks in FLOW]


def replay(directory: Path, messages: list[str], books: list[str], **options: Any) -> str:
    """Write both files, run the command and return its output."""
    messages_path, book_path = directory / "messages.csv", directory / "book.csv"
    messages_path.write_text("\n".join(messages) + "\n")
    book_path.write_text("\n".join(books) + "\n")
    return replay_files(messages_path, book_path, **options)


def replay_files(messages: Path, book: Path, **options: Any) -> str:
    """Run the command and return its output; raise `Failed`, with the output as a note, if it fails."""
    printed, errors = io.StringIO(), io.StringIO()
    arguments = {"messages": messages, "book": book, **options}
    with redirect_stdout(printed), redirect_stderr(errors):
        code = main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
    if code:
        failed = Failed(errors.getvalue().rstrip("\n"), code)
        failed.add_note(printed.getvalue())
        raise failed
    return printed.getvalue()


class Failed(Exception):
    """The command's message and exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# --- The files ------------------------------------------------------------------------------------------------------


def test_a_message_is_parsed_exactly() -> None:
    message = parse_message("34200.004241176,4,16113575,18,5853301,-1")
    assert message == Message(MessageType.EXECUTED, 16113575, 18, Decimal("585.3301"), Side.ASK)
    assert message.change == -18


def test_a_book_row_has_no_empty_levels() -> None:
    book = parse_book(book_row(bids=[(5853300, 18), (5853000, 150)], asks=[]))
    assert book.bids == (BookLevel(Decimal("585.3300"), 18), BookLevel(Decimal("585.3000"), 150))
    assert book.asks == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("34200.1,1,7,18,5853300", "a message has 6 values, not 5"),
        ("noon,1,7,18,5853300,1", "'noon' is not a time in seconds"),
        ("34200.1,1,7,1.5,5853300,1", "'1.5' is not a whole number"),
        ("34200.1,6,7,18,5853300,1", "6 is not a message type from 1 to 5"),
        ("34200.1,1,7,0,5853300,1", "the size and the price of a message must be greater than 0"),
        ("34200.1,1,7,18,-5853300,1", "the size and the price of a message must be greater than 0"),
        ("34200.1,1,7,18,5853300,0", "the direction must be 1 or -1, not 0"),
        ("", "a message has 6 values, not 1"),
    ],
)
def test_the_error_names_file_and_line_of_a_malformed_message(tmp_path: Path, row: str, reason: str) -> None:
    messages = [*MESSAGES[:2], row, *MESSAGES[3:]]
    with pytest.raises(Failed) as failure:
        replay(tmp_path, messages, BOOKS)
    assert str(failure.value) == f"{tmp_path / 'messages.csv'}, line 3: {reason}."


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1000000,5", "a book row has 40 values, not 2"),
        (BOOKS[1].replace("1010000", "101.00"), "'101.00' is not a whole number"),
        (book_row([(1000000, -3)], []), "the size and the price of a level must be greater than 0, or the size 0"),
        (book_row([(-9999999999, 3)], []), "the size and the price of a level must be greater than 0, or the size 0"),
    ],
)
def test_the_error_names_file_and_line_of_a_malformed_book_row(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(Failed) as failure:
        replay(tmp_path, MESSAGES, [BOOKS[0], row, *BOOKS[2:]])
    assert str(failure.value) == f"{tmp_path / 'book.csv'}, line 2: {reason}."


def test_files_with_different_row_counts_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"messages.csv has 10 rows and .*book.csv has 9: row n of one must belong"):
        replay(tmp_path, MESSAGES, BOOKS[:-1])


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"messages.csv has no rows\.$"):
        replay(tmp_path, [], BOOKS)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    missing = tmp_path / "none.csv"
    with pytest.raises(Failed) as failure:
        replay_files(missing, missing)
    assert str(failure.value) == f"There is no file {missing}."


# --- The exchange ---------------------------------------------------------------------------------------------------


def test_the_error_for_missing_credentials_says_how_to_start_the_exchange(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"none.json: start the exchange with `make run`\.$"):
        replay(tmp_path, MESSAGES, BOOKS, credentials=tmp_path / "none.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"base_url": "localhost:80", "operator_key": "x"}'])
def test_invalid_credentials_are_rejected(tmp_path: Path, content: str) -> None:
    credentials = tmp_path / "credentials.json"
    credentials.write_text(content)
    with pytest.raises(Failed, match=r"has no base_url and operator_key|is not the URL of an exchange"):
        replay(tmp_path, MESSAGES, BOOKS, credentials=credentials)


def test_the_error_names_the_url_of_an_unreachable_exchange(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        credentials = tmp_path / "credentials.json"
        credentials.write_text(json.dumps({"base_url": url, "operator_key": "x"}))
        with pytest.raises(Failed) as failure:
            replay(tmp_path, MESSAGES, BOOKS, credentials=credentials)
    assert str(failure.value) == f"No exchange can be reached at {url}: start it with `make run`."


@pytest.fixture
def credentials(server: Any, tmp_path: Path) -> Path:
    """The credentials file of the running exchange, as written by `make run`."""
    path = tmp_path / "credentials.json"
    _, key = services.issue_key(None, name="replay", scopes=(Scope.OPERATOR,), by=BY)
    path.write_text(json.dumps({"base_url": server.url, "operator_key": key}))
    return path


@pytest.mark.django_db(transaction=True)
def test_every_message_type_results_in_the_book_of_the_file(tmp_path: Path, credentials: Path) -> None:
    printed = replay(tmp_path, MESSAGES, BOOKS, credentials=credentials).splitlines()
    assert printed[0].endswith(": 10 of 10 books right at the top 5 levels")
    assert printed[2:6] == ["trades: 2", "wrong books: 0", "wrong executions: 0", "seeds: 1"]


@pytest.mark.django_db(transaction=True)
def test_one_wrong_book_fails_the_replay(tmp_path: Path, credentials: Path) -> None:
    books = [*BOOKS[:5], book_row([(1000000, 13)], [(1020000, 7)]), *BOOKS[6:]]
    with pytest.raises(Failed) as failure:
        replay(tmp_path, MESSAGES, books, credentials=credentials)
    assert str(failure.value) == "1 of 10 books and 0 executions were wrong."
    assert failure.value.code == 1
    assert failure.value.__notes__[0].splitlines()[-1] == (
        "row 6: expected bids 13 at 100.0000; asks 7 at 102.0000; found bids 12 at 100.0000; asks 7 at 102.0000"
    )


@pytest.mark.django_db(transaction=True)
def test_an_execution_that_is_not_filled_in_full_is_counted(tmp_path: Path, credentials: Path) -> None:
    messages = [MESSAGES[0], "34200.1,4,1,16,1000000,1"]
    with pytest.raises(Failed) as failure:
        replay(tmp_path, messages, [BOOKS[0], book_row([], [(1010000, 20)])], credentials=credentials)
    assert str(failure.value) == "0 of 2 books and 1 executions were wrong."


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(not REAL_MESSAGES.exists(), reason="the sample of real order flow is not part of the product")
def test_real_order_flow_results_in_the_books_of_the_file(credentials: Path) -> None:
    printed = replay_files(REAL_MESSAGES, REAL_BOOK, credentials=credentials).splitlines()
    assert printed[0].endswith(": 500 of 500 books right at the top 5 levels")
    assert printed[1:6] == ["requests: 1004", "trades: 63", "wrong books: 0", "wrong executions: 0", "seeds: 9"]
