"""`manage.py reconcile`: is everything that must be true still true?"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from exchange.audit import Actor, ActorKind
from exchange.models import AuditEntry, AuditHead
from orders.reconciliation import runs


def _anchor(text: str) -> dict[str, Any]:
    """Fields of the entry that an anchor names; ValueError for anything else."""
    number, _, digest = text.partition(":")
    return {"number": int(number), "hash": bytes.fromhex(digest)}


class Command(BaseCommand):
    help = "Recompute balances and check every invariant, on a live database; exit 1 on any difference."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--timings", action="store_true", help="say how many seconds each check took")
        parser.add_argument(
            "--anchor",
            type=_anchor,
            metavar="NUMBER:HASH",
            help="end of the audit as an earlier run printed it, which must still be in the audit",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        run = runs.run_now(by=Actor(ActorKind.COMMAND, "manage.py reconcile"))
        for finding in run.findings:
            seconds = f"{finding['seconds']:>8.2f} s" if options["timings"] else ""
            self.stdout.write(f"{finding['count']:>8}{seconds}  {finding['check']}")
            for example in finding["examples"]:
                self.stdout.write(f"          - {example}")
        self.stdout.write(f"The audit ends with {AuditHead.objects.get()}.")
        if options["anchor"] and not AuditEntry.objects.filter(**options["anchor"]).exists():
            raise CommandError("The audit no longer has the entry of --anchor: it was rewritten.", returncode=1)
        if run.differences:
            raise CommandError(f"{run.differences} differences.", returncode=1)
        self.stdout.write("Everything agrees.")
