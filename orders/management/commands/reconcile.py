"""`manage.py reconcile`: is everything that must be true still true?"""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction

from orders import reconcile


class Command(BaseCommand):
    help = "Recompute balances and check every invariant, on a live database; exit 1 on any difference."

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic(durable=True), connection.cursor() as cursor:
            # One snapshot for all checks: orders may go on meanwhile.
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SET LOCAL statement_timeout = 0")
            findings = reconcile.findings(cursor)
        for finding in findings:
            self.stdout.write(f"{finding.count:>8}  {finding.check}")
            for example in finding.examples:
                self.stdout.write(f"          - {example}")
        differences = sum(finding.count for finding in findings)
        if differences:
            raise CommandError(f"{differences} differences.", returncode=1)
        self.stdout.write("Everything agrees.")
