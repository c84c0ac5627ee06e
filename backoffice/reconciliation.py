"""The reconciliation: the last run, a button for the next, and all there were."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from backoffice.lists import column
from backoffice.model_admin import ExchangeModelAdmin
from backoffice.operator_actions import ActionResult, OperatorAction
from backoffice.templatetags.formatting import state, took
from exchange.audit import Actor
from exchange.rules import MAX_REASON_LENGTH
from orders.models import ReconcileRun
from orders.reconciliation import runs


class OptionalReasonForm(forms.Form):
    """It changes nothing, so nobody need say why."""

    reason = forms.CharField(max_length=MAX_REASON_LENGTH, required=False, help_text="Goes on record with the action.")


class StartReconciliation(OperatorAction):
    name = "start"
    label = "Run the reconciliation"
    explanation = (
        "Recomputes balances, reservations, fills and event numbers from transfers, trades and open orders, in one "
        "snapshot of the live exchange. Trading goes on meanwhile, and nothing is changed. It may take minutes."
    )
    permission = "orders.run_reconcile"
    form_class = OptionalReasonForm
    max_subjects = 0

    def perform(self, by: Actor, subjects: Sequence[Any], **fields: Any) -> ActionResult:
        runs.start(by=by, reason=fields["reason"])
        return ActionResult("The reconciliation was asked for; a worker begins it within seconds.")


def _differences(run: ReconcileRun) -> int | None:
    """None where there is no verdict to go by."""
    return run.differences if run.findings else None


@admin.register(ReconcileRun)
class ReconcileRunAdmin(ExchangeModelAdmin):
    list_display = (
        column("Asked for (UTC)", "asked_at"),
        column("By", "asked_by"),
        column("Outcome", lambda run: state(run.state)),
        column("Checks made", lambda run: f"{len(run.findings)} of {run.checks}", is_number=True),
        column("Differences", _differences, is_number=True),
        column("Took", lambda run: took(run.seconds), is_number=True),
    )
    ordering = ("-id",)
    operator_actions = (StartReconciliation(),)
    is_live = True
    list_before_template = "backoffice/reconciliation/last.html"
    row_template = "backoffice/reconciliation/row.html"

    def list_context(self, request: HttpRequest) -> dict[str, Any]:
        return {"title": "Reconciliation", **_run_context(ReconcileRun.objects.order_by("pk").last())}

    def row_context(self, request: HttpRequest, row: ReconcileRun) -> dict[str, Any]:
        return {"title": f"Reconciliation of {row.asked_at:%Y-%m-%d %H:%M:%S} UTC", **_run_context(row)}


def _run_context(run: ReconcileRun | None) -> dict[str, Any]:
    """A run, and what it found: first what differs."""
    findings = [] if run is None else sorted(run.findings, key=lambda finding: finding["count"] == 0)
    return {"run": run, "findings": findings}
