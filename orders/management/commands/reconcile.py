"""`manage.py reconcile`: checks every invariant of the stored data."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from exchange.audit import Actor, ActorKind
from exchange.models import AuditEntry, AuditHead
from orders.reconciliation import runs


def _anchor(text: str) -> dict[str, Any]:
    """The fields of the entry that an anchor names. Raise ValueError if it is malformed."""
    number, _, digest = text.partition(":")
    return {"number": int(number), "hash": bytes.fromhex(digest)}


class Command(BaseCommand):
    help = "Recompute balances and check every invariant, on a live database. Exits with 1 on any difference."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--timings", action="store_true", help="print the seconds that each check took")
        parser.add_argument(
            "--anchor",
            type=_anchor,
            metavar="NUMBER:HASH",
            help="last audit entry as printed by an earlier run; fail if the audit no longer contains it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        run = runs.run_now(by=Actor(ActorKind.COMMAND, "manage.py reconcile"))
        for finding in run.findings:
            seconds = f"{finding['seconds']:>8.2f} s" if options["timings"] else ""
            self.stdout.write(f"{finding['count']:>8}{seconds}  {finding['check']}")
            for example in finding["examples"]:
                self.stdout.write(f"          - {example}")
        self.stdout.write(f"The audit log ends with {AuditHead.objects.get()}.")
        if options["anchor"] and not AuditEntry.objects.filter(**options["anchor"]).exists():
            raise CommandError("The audit log no longer contains the --anchor entry: it was rewritten.", returncode=1)
        if run.differences:
            raise CommandError(f"{run.differences} differences.", returncode=1)
        self.stdout.write("No differences.")
