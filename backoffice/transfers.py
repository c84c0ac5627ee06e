"""Transfers: the journal of what came into the exchange and what left it."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest

from backoffice import form_fields
from backoffice.links import page_url
from backoffice.lists import Rows, Way, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodForm, within, within_by_id
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.models import Broker, Instrument, Transfer
from exchange.rules import Words


class TransferKind(Words):
    CASH = "cash"
    SHARES = "shares"


class TransferFilter(PeriodForm):
    q = forms.CharField(max_length=120, required=False, label="Reference or id")
    broker = form_fields.broker_id(required=False)
    kind = form_fields.WordField(TransferKind)
    symbol = form_fields.symbol(required=False, read=str.upper)
    field_order = ["q", "broker", "kind", "symbol", "since", "until"]


@admin.register(Transfer)
class TransferAdmin(KeysetModelAdmin):
    list_display = (
        column("Booked", "created_at"),
        column("Reference", "reference", link=lambda transfer: page_url(Transfer, transfer.pk)),
        column("Broker", "broker_id", link=lambda transfer: page_url(Broker, transfer.broker_id)),
        column("Cash", "cash", is_number=True),
        column(
            "Symbol",
            "instrument_id",
            link=lambda transfer: page_url(Instrument, transfer.instrument_id) if transfer.instrument_id else "",
        ),
        column("Shares", "quantity", is_number=True),
        column("Reason", "reason", is_text=True),
    )
    export_columns = {
        "id": "id",
        "reference": "reference",
        "broker_id": "broker_id",
        "cash": "cash",
        "symbol": "instrument_id",
        "quantity": "quantity",
        "reason": "reason",
        "created_at": "created_at",
    }
    form_class = TransferFilter
    row_template = "backoffice/transfer.html"

    def way(self, asked: dict[str, Any]) -> Way:
        among = Q(instrument=asked["symbol"]) if asked["symbol"] else Q()
        if asked["kind"]:
            among &= Q(cash__isnull=asked["kind"] == TransferKind.SHARES)
        rows = Transfer.objects.all()
        if asked["q"]:
            return Way(
                within(_known_by(rows, asked["q"]), "created_at", asked), Keyset(("-id", UUID)), among & _of(asked)
            )
        if asked["broker"]:
            return Way(within(rows.filter(_of(asked)), "created_at", asked), NEWEST_FIRST, among)
        return Way(within_by_id(rows, "created_at", asked), Keyset(("-id", UUID)), among)

    def row_context(self, request: HttpRequest, row: Transfer) -> dict[str, Any]:
        return {
            "broker_url": page_url(Broker, row.broker_id),
            "instrument_url": page_url(Instrument, row.instrument_id) if row.instrument_id else "",
        }


def _of(asked: dict[str, Any]) -> Q:
    return Q(broker=asked["broker"]) if asked["broker"] else Q()


def _known_by(rows: Rows, term: str) -> Rows:
    """The transfer with this reference, or with this id: a reference may look like one."""
    try:
        return rows.filter(Q(reference=term) | Q(pk=UUID(term)))
    except ValueError:
        return rows.filter(reference=term)
