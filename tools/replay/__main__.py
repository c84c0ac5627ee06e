"""`python -m tools.replay`: send real order flow to a running exchange over HTTP, and compare its book."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tools.replay.client import ExchangeClient
from tools.replay.files import TOP_LEVELS, ReplayError, read_rows
from tools.replay.replay import Replay, Report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return 0 if every book and execution was right."""
    options = _parser().parse_args(arguments)
    try:
        for _ in read_rows(options.messages, options.book):  # find bad rows before anything is sent
            pass
        with closing(_exchange(options.credentials)) as exchange:
            replay = Replay(exchange, suffix=f"{time.time_ns() // 1_000_000 % 10**11:011d}")
            report = replay.run(read_rows(options.messages, options.book))
    except ReplayError as error:
        print(error, file=sys.stderr)
        return 1
    _print(replay.symbol, report)
    if report.is_right:
        return 0
    books, executions = f"{report.wrong_books} of {report.books} books", f"{report.wrong_executions} executions"
    print(f"{books} and {executions} were wrong.", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.replay",
        description="Send a LOBSTER message file to a running exchange and compare its book with a book file.",
    )
    parser.add_argument("--messages", type=Path, required=True, help="LOBSTER message file (CSV)")
    parser.add_argument(
        "--book", type=Path, required=True, help="LOBSTER book file: the ten best levels after each message"
    )
    parser.add_argument(
        "--credentials",
        type=Path,
        default=Path(".run/credentials.json"),
        help="base_url and operator_key of the exchange (default: %(default)s, written by `make run`)",
    )
    return parser


def _print(symbol: str, report: Report) -> None:
    right = report.books - report.wrong_books
    print(f"{symbol}: {right} of {report.books} books right at the top {TOP_LEVELS} levels")
    print(f"requests: {report.requests}")
    print(f"trades: {report.trades}")
    print(f"wrong books: {report.wrong_books}")
    print(f"wrong executions: {report.wrong_executions}")
    print(f"seeds: {report.seeds}")
    print(f"orders per second: {report.orders_per_second:.0f}")
    for difference in report.differences:
        print(difference)


def _exchange(credentials: Path) -> ExchangeClient:
    """Return the running exchange named by the credentials file."""
    try:
        known = json.loads(credentials.read_bytes())
        return ExchangeClient(known["base_url"], known["operator_key"])
    except FileNotFoundError as error:
        raise ReplayError(f"There is no file {credentials}: start the exchange with `make run`.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReplayError(
            f"{credentials} has no base_url and operator_key: delete it and start `make run` again."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
