"""Transfers: the journal of deposits and withdrawals."""

from typing import Any
from uuid import UUID

from django import forms
from django.contrib import admin
from django.db.models import Q

from backoffice import form_fields
from backoffice.exports import columns_of
from backoffice.links import page_url
from backoffice.lists import KeysetQuery, Rows, column
from backoffice.model_admin import KeysetModelAdmin
from backoffice.periods import PeriodFilterForm, in_period, in_period_by_id
from exchange.http.paging import NEWEST_FIRST, Keyset
from exchange.models import Broker, Instrument, Transfer
from exchange.rules import ChoicesEnum


class TransferKind(ChoicesEnum):
    CASH = "cash"
    SHARES = "shares"


class TransferFilterForm(PeriodFilterForm):
    q = forms.CharField(max_length=120, required=False, label="Reference or transfer ID")
    broker = form_fields.broker_id(required=False)
    kind = form_fields.FilterChoiceField(TransferKind)
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
    export_columns = columns_of(Transfer)
    form_class = TransferFilterForm
    row_template = "backoffice/transfer.html"

    def keyset_query(self, filters: dict[str, Any]) -> KeysetQuery:
        unindexed = Q(instrument=filters["symbol"]) if filters["symbol"] else Q()
        if filters["kind"]:
            unindexed &= Q(cash__isnull=filters["kind"] == TransferKind.SHARES)
        rows = Transfer.objects.all()
        if filters["q"]:
            return KeysetQuery(
                in_period(_search(rows, filters["q"]), "created_at", filters),
                Keyset(("-id", UUID)),
                unindexed & _broker_condition(filters),
            )
        if filters["broker"]:
            return KeysetQuery(
                in_period(rows.filter(_broker_condition(filters)), "created_at", filters), NEWEST_FIRST, unindexed
            )
        return KeysetQuery(in_period_by_id(rows, "created_at", filters), Keyset(("-id", UUID)), unindexed)


def _broker_condition(filters: dict[str, Any]) -> Q:
    return Q(broker=filters["broker"]) if filters["broker"] else Q()


def _search(rows: Rows, term: str) -> Rows:
    """Find a transfer by its reference or its ID. A reference can look like an ID."""
    try:
        return rows.filter(Q(reference=term) | Q(pk=UUID(term)))
    except ValueError:
        return rows.filter(reference=term)
