"""`manage.py create_operator_key`: the only way to an operator's key; printed once, kept nowhere."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from exchange import services
from exchange.rules import MAX_NAME_LENGTH, Scope


class Command(BaseCommand):
    help = "Create a key with the operator scope and print it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", default="", help="who or what uses it")

    def handle(self, *, name: str, **options: Any) -> None:
        _, key = services.issue_key(None, name=name[:MAX_NAME_LENGTH], scopes=[Scope.OPERATOR])
        self.stdout.write(key)
