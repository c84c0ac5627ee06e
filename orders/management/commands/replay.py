"""`manage.py replay`: real order flow against a running exchange, over HTTP."""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from orders.replay.client import Exchange
from orders.replay.files import TOP_LEVELS, ReplayError, read_rows
from orders.replay.replay import Replay, Report


class Command(BaseCommand):
    help = "Send a LOBSTER message file to a running exchange and compare its book with the book file after each."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--messages", type=Path, required=True, help="the messages, a CSV file as LOBSTER writes it"
        )
        parser.add_argument("--book", type=Path, required=True, help="the ten best levels after each message, likewise")
        parser.add_argument(
            "--credentials",
            type=Path,
            default=Path(".run/credentials.json"),
            help="base_url and operator_key of the exchange (default: %(default)s, which `make run` writes)",
        )

    def handle(self, *args: Any, messages: Path, book: Path, credentials: Path, **options: Any) -> None:
        try:
            for _ in read_rows(messages, book):  # a bad row is found before anything is sent
                pass
            with closing(_exchange(credentials)) as exchange:
                replay = Replay(exchange, suffix=f"{time.time_ns() // 1_000_000 % 10**11:011d}")
                report = replay.run(read_rows(messages, book))
        except ReplayError as error:
            raise CommandError(str(error)) from error
        self._print(replay.symbol, report)
        if not report.is_right:
            books, executions = f"{report.wrong_books} of {report.books} books", f"{report.wrong_executions} executions"
            raise CommandError(f"{books} and {executions} were wrong.")

    def _print(self, symbol: str, report: Report) -> None:
        right = report.books - report.wrong_books
        self.stdout.write(f"{symbol}: {right} of {report.books} books right at the top {TOP_LEVELS} levels")
        self.stdout.write(f"requests: {report.requests}")
        self.stdout.write(f"trades: {report.trades}")
        self.stdout.write(f"wrong books: {report.wrong_books}")
        self.stdout.write(f"wrong executions: {report.wrong_executions}")
        self.stdout.write(f"seeds: {report.seeds}")
        self.stdout.write(f"orders per second: {report.orders_per_second:.0f}")
        for difference in report.differences:
            self.stdout.write(difference)


def _exchange(credentials: Path) -> Exchange:
    """The running exchange that the credentials file tells of."""
    try:
        known = json.loads(credentials.read_bytes())
        return Exchange(known["base_url"], known["operator_key"])
    except FileNotFoundError as error:
        raise CommandError(f"There is no file {credentials}: start the exchange with `make run`.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{credentials} does not say base_url and operator_key: make it anew.") from error
