"""The audit: every act on record, to be looked through and taken along."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.models import AuditEntry
from exchange.paging import Keyset


@admin.register(AuditEntry)
class AuditPages(Pages):
    columns = (
        Column("When", "at"),
        Column("Who", "actor"),
        Column("What", "action"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(AuditEntry.objects.all(), Keyset(("-id", UUID)))
