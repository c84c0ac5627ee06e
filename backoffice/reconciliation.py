"""The reconciliation: the last run, a button for the next, and all there were."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.paging import Keyset
from orders.models import ReconcileRun


@admin.register(ReconcileRun)
class ReconcileRunPages(Pages):
    columns = (
        Column("Run", "id"),
        Column("Asked by", "asked_by"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(ReconcileRun.objects.all(), Keyset(("-id", UUID)))
