"""`manage.py create_operator_key`: the only way to create an operator key. It is printed once, and not stored."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from exchange import services
from exchange.audit import Actor, ActorKind
from exchange.rules import MAX_NAME_LENGTH, Scope

BY = Actor(ActorKind.COMMAND, "manage.py create_operator_key")


class Command(BaseCommand):
    help = "Create a key with the operator scope and print it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--name", default="", help="name of the key, such as its user or purpose")

    def handle(self, *, name: str, **options: Any) -> None:
        _, key = services.issue_key(None, name=name[:MAX_NAME_LENGTH], scopes=[Scope.OPERATOR], by=BY)
        self.stdout.write(key)
