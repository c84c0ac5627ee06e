"""Reconciliation: the latest run, all runs, and the action that starts one."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from backoffice.lists import column
from backoffice.model_admin import ExchangeModelAdmin
from backoffice.operator_actions import ActionResult, OperatorAction
from backoffice.templatetags.formatting import duration, status_pill, utc
from exchange.audit import Actor
from exchange.rules import MAX_REASON_LENGTH
from orders.models import ReconcileRun
from orders.reconciliation import runs


class OptionalReasonForm(forms.Form):
    """Form with an optional reason, because a reconciliation changes nothing."""

    reason = forms.CharField(max_length=MAX_REASON_LENGTH, required=False, help_text="Recorded in the audit log.")


class StartReconciliation(OperatorAction):
    name = "start"
    label = "Run reconciliation"
    explanation = (
        "Recomputes balances, reservations, fills and event sequences from transfers, trades and open orders in one "
        "snapshot of the live exchange. Trading continues and no data is changed. This can take minutes."
    )
    permission = "orders.run_reconcile"
    form_class = OptionalReasonForm
    max_subjects = 0

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        runs.start(by=by, reason=fields["reason"])
        return ActionResult("Reconciliation requested. A worker starts it within seconds.")


def _differences(run: ReconcileRun) -> int | None:
    """Return the number of differences, or None before the first finding."""
    return run.differences if run.findings else None


@admin.register(ReconcileRun)
class ReconcileRunAdmin(ExchangeModelAdmin):
    list_display = (
        column("Requested", "asked_at"),
        column("Requested by", "asked_by"),
        column("Result", lambda run: status_pill(run.state)),
        column("Checks completed", lambda run: f"{len(run.findings)} of {run.checks}", is_number=True),
        column("Differences", _differences, is_number=True),
        column("Duration", lambda run: duration(run.seconds), is_number=True),
    )
    ordering = ("-id",)
    operator_actions = (StartReconciliation(),)
    is_live = True
    list_before_template = "backoffice/reconciliation/last.html"
    row_template = "backoffice/reconciliation/row.html"

    def list_context(self, request: HttpRequest) -> dict[str, Any]:
        return {"title": "Reconciliation", **_run_context(ReconcileRun.objects.order_by("pk").last())}

    def row_context(self, request: HttpRequest, row: ReconcileRun) -> dict[str, Any]:
        return {"title": f"Reconciliation of {utc(row.asked_at)}", **_run_context(row)}


def _run_context(run: ReconcileRun | None) -> dict[str, Any]:
    """Return a run and its findings, those with differences first."""
    findings = [] if run is None else sorted(run.findings, key=lambda finding: finding["count"] == 0)
    return {"run": run, "findings": findings}
