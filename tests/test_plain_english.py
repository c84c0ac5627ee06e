"""Comments, docstrings and documents are in plain English, as the rules in `tests.plain_english` understand it."""

from pathlib import Path

import pytest
import rest_framework

from tests.plain_english import Kind, files, percentages, problem_of, sentences_of

LIMIT = 2.0  # per cent of the sentences of an area

HARD_TO_READ = [
    "Execute what waits, the first one's commands first, and appoint who leads next before calling who is done.",
    "The same for who waits on an event loop.",
    "…then by halves, down to who is to blame.",
    "The usual order at a glance: the very values of `PlaceOrderForm`, in a fraction of its time.",
    "So many orders were refused just now.",
    "What who tried too often sees, with a good password too.",
    "Whether an answer says to who may ask that nothing was done",
    "Then who waits to log in is sent away",
    "Where a login leads is no limit",
    "There is nothing at this path.",
    "Leave it",
    "Who waits holds no connection",
    "What cannot be borne is refused",
    "so many orders were refused just now",
    "of one key, in all web processes together",
    "Told to stop, it ends at once.",
    "Closes the file, so that nobody reads it meanwhile.",
    "The log is written for whoever looks after the machine.",
]
PLAIN = [
    "Run the next batch, promote the next leader, then wake the waiters.",
    "Async variant of `submit`.",
    "Retry once, then bisect until the failing command is isolated.",
    "Fast validation: same result as the serializer, or None to fall back to it.",
    "Count `orders` rejections.",
    "Lockout page, shown even for a correct password.",
    "True if this status means that an authenticated request was not executed.",
    "Seconds a login waits for its turn before it is refused.",
    "Move LOGIN_REDIRECT_URL out of the limits",
    "Not found.",
    "Keep orders · Back",
    "What happens to an order that expires during a halt?",
    "The button `Whoever asked` is gone.",
    'The log says "nobody asked for this".',
    "The audit log shows who cancelled an order, and the broker who placed it.",
]


@pytest.mark.parametrize("sentence", HARD_TO_READ)
def test_a_sentence_that_is_hard_to_read_is_flagged(sentence: str) -> None:
    assert problem_of(sentence)


@pytest.mark.parametrize("sentence", PLAIN)
def test_a_plain_sentence_is_not_flagged(sentence: str) -> None:
    assert problem_of(sentence) is None


def test_a_heading_may_begin_with_what() -> None:
    assert problem_of("What each scope allows", Kind.TITLE) is None
    assert problem_of("What each scope allows is checked first.")


def test_no_area_has_more_flagged_sentences_than_its_limit() -> None:
    found = [sentence for path in files() for sentence in sentences_of(path)]
    shares = percentages(found)
    excessive = {area for area, share in shares.items() if round(share, 1) > LIMIT}

    assert [f"{each.path}:{each.line}: {each.text}" for each in found if each.problem and each.area in excessive] == []
    assert {"backoffice", "config", "docs", "exchange", "orders", "test names", "tests", "webhooks"} <= shares.keys()


def test_the_sources_of_rest_framework_are_within_the_limit() -> None:
    root = Path(rest_framework.__file__).parent
    found = [sentence for path in files(root) for sentence in sentences_of(path, root)]

    assert 100 * sum(each.problem is not None for each in found) / len(found) < LIMIT
