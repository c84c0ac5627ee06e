"""Every page of the back office: all URLs of the admin site, with rows of the database.

New pages are included automatically: lists, pages of rows, actions, and all other URLs of the site.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin import ModelAdmin
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Model
from django.urls import URLPattern, URLResolver, reverse
from django_otp.plugins.otp_totp.models import TOTPDevice

from backoffice.model_admin import ExchangeModelAdmin
from backoffice.operator_actions import OperatorAction
from exchange import services
from exchange.audit import Actor, ActorKind
from exchange.database import database_now
from exchange.rules import BrokerStatus
from orders.enums import OrderType, Side, TimeInForce
from orders.matching import service
from orders.matching.commands import Accepted, PlaceOrder
from orders.reconciliation import runs
from webhooks import services as webhooks
from webhooks.models import Delivery, DeliveryError, Subscription

# URLs that redirect, respond to scripts or export files, and Django's forms that actions replace.
NOT_PAGES = re.compile("logout|jsi18n|autocomplete|view_on_site|search|.*_export|auth_user_delete")
DISABLED_SUFFIXES = ("_add", "_history", "_delete")
MAX_CANDIDATES = 500  # rows among which one is chosen that an action applies to

BY = Actor(ActorKind.COMMAND, "bench")

# Audit entries of the last month, with the hash chain of `exchange_record_audit`.
_AUDIT_ENTRIES = """
CREATE FUNCTION pg_temp.write_entries(entries int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  entry exchange_auditentry;
  head exchange_audithead;
BEGIN
  SELECT * INTO STRICT head FROM exchange_audithead FOR UPDATE;
  FOR n IN 1 .. entries LOOP
    head.number := head.number + 1;
    entry.number := head.number;
    entry.at := now() - interval '30 days' * (1 - n / entries::float);
    entry.id := uuidv7(entry.at - statement_timestamp());
    entry.actor_kind := 'user';
    entry.actor := 'operator-' || n % 5;
    entry.address := '127.0.0.1';
    entry.request_id := '';
    entry.action := (ARRAY['broker.suspend', 'broker.reinstate', 'broker.transfer'])[1 + n % 3];
    entry.subject := 'bench-' || 1 + n % 20;
    entry.reason := 'as requested';
    head.hash := exchange_audit_hash(head.hash, entry);
    entry.hash := head.hash;
    INSERT INTO exchange_auditentry SELECT entry.*;
  END LOOP;
  UPDATE exchange_audithead SET number = head.number, hash = head.hash;
END
$$
"""

RowChooser = Callable[[type[Model]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class OfficePage:
    """A page of the back office, with the name of its URL."""

    name: str
    path: str


def newest(model: type[Model]) -> Sequence[Any]:
    """Return the newest rows, as candidates for the pages of rows."""
    return list(model._default_manager.order_by("-pk")[:MAX_CANDIDATES])


def create_rows(actions: int) -> None:
    """Create the rows that pages need and `bench.history` does not create, and `actions` audit entries.

    Call it after creating the user that visits the pages, because the newest user is one that others may change.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(_AUDIT_ENTRIES)
        cursor.execute("SELECT pg_temp.write_entries(%s); DROP FUNCTION pg_temp.write_entries", [actions])
        cursor.execute("ANALYZE exchange_auditentry")
    TOTPDevice.objects.create(user=User.objects.create(username="looked-at", is_staff=True))
    services.list_instrument("NEW", by=BY)  # without orders, so it can be removed
    services.halt("S2", "news pending", by=BY)
    services.set_broker_status("bench-3", BrokerStatus.SUSPENDED, reason="margin call not met", by=BY)
    services.transfer("bench-1", reference="wire-1", cash=Decimal(1_000), reason="wire of the morning", by=BY)
    services.issue_key("bench-1", name="reporting", by=BY)
    live, paused = Subscription.objects.order_by("-pk")[:2]
    Subscription.objects.filter(pk__in=[live.pk, paused.pk]).update(deleted_at=None)
    webhooks.pause(paused.pk, by=BY, reason="receiver moves")
    order = PlaceOrder(
        broker_id=live.broker_id,
        document_number="12345678900",
        client_order_id="now",
        side=Side.BID,
        symbol="S1",
        quantity=1_000_000,  # only partly filled at this price
        type=OrderType.LIMIT,
        price=Decimal("100.01"),
        time_in_force=TimeInForce.GTC,
    )
    assert all(isinstance(outcome, Accepted) for outcome in service.execute([order]))
    now = database_now()
    pending = Delivery.objects.filter(subscription=live, claimed_at=None)
    assert pending.update(claimed_at=now, completed_at=now, error=DeliveryError.TIMEOUT, duration_ms=5_000)
    Subscription.objects.filter(pk=live.pk).update(last_failure_at=now, failures_left=0)
    runs.run_now(by=BY)


def pages(rows: RowChooser = newest) -> list[OfficePage]:
    """Return all pages. Raise LookupError if there is no row for one."""
    found = [page for name, arguments in _urls(admin.site.get_urls()) for page in _page(name, arguments, rows)]
    return sorted(found, key=lambda page: page.name)


def _urls(patterns: Sequence[URLPattern | URLResolver]) -> Iterator[tuple[str, int]]:
    """Yield the names of all URLs of the site, with their number of arguments."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _urls(pattern.url_patterns)
        elif pattern.name and not NOT_PAGES.fullmatch(pattern.name):
            route: Any = pattern.pattern
            yield pattern.name, route.regex.groups


def _page(name: str, arguments: int, rows: RowChooser) -> Iterator[OfficePage]:
    if name == "app_list":
        for app in sorted({model._meta.app_label for model in registry()}):
            yield OfficePage(f"app-{app}", reverse("admin:app_list", args=[app]))
        return
    owner = _owner(name)
    if owner is not None and _is_disabled(owner, name):
        return
    title = "dashboard" if name == "index" else name.replace("_", "-")
    actions = {} if owner is None else _actions(owner)
    if name in actions:
        yield from _action_page(title, name, actions[name], owner, rows)
    elif not arguments:
        yield OfficePage(title, reverse(f"admin:{name}"))
    else:
        assert arguments == 1, name
        assert owner is not None, name
        (row,) = _require_rows(name, rows(owner.model)[:1])
        yield OfficePage(title, reverse(f"admin:{name}", args=[row.pk]))


def _require_rows(name: str, found: Sequence[Any]) -> Sequence[Any]:
    if not found:
        raise LookupError(f"There is no row for {name}.")
    return found


def _owner(name: str) -> "ModelAdmin[Any] | None":
    """Return the admin of a page: the longest model name that the page's name begins with."""
    owned = {f"{model._meta.app_label}_{model._meta.model_name}_": owner for model, owner in registry().items()}
    fitting = [prefix for prefix in owned if name.startswith(prefix)]
    return owned[max(fitting, key=len)] if fitting else None


def registry() -> Mapping[type[Model], "ModelAdmin[Any]"]:
    return admin.site._registry


def _is_disabled(owner: "ModelAdmin[Any]", name: str) -> bool:
    """True for Django's forms that actions replace."""
    return isinstance(owner, ExchangeModelAdmin) and name.endswith(DISABLED_SUFFIXES)


def _actions(owner: "ModelAdmin[Any]") -> dict[str, OperatorAction]:
    prefix = f"{owner.opts.app_label}_{owner.opts.model_name}"
    found = [each for each in getattr(owner, "operator_actions", ()) if isinstance(each, OperatorAction)]
    return {f"{prefix}_{action.name.replace('-', '_')}": action for action in found}


def _action_page(
    title: str, name: str, action: OperatorAction, owner: "ModelAdmin[Any] | None", rows: RowChooser
) -> Iterator[OfficePage]:
    path = reverse(f"admin:{name}")
    if not action.max_subjects:
        yield OfficePage(title, path)
        return
    assert owner is not None
    candidates = [row for row in rows(owner.model) if action.applies_to(row)]
    subjects = _require_rows(name, candidates[: min(action.max_subjects, 2)])
    yield OfficePage(title, f"{path}?{urlencode([('id', subject.pk) for subject in subjects])}")
