"""Permissions of the roles: every action and every page, requested at its own URL.

Actions and pages are taken from the registry. The roles of each permission are listed here.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, Permission, User
from django.db.models import Model
from django.test import Client
from django.urls import reverse

from backoffice.links import list_url
from backoffice.model_admin import ExchangeModelAdmin
from backoffice.operator_actions import OperatorAction, action_url
from exchange.models import AuditEntry, Broker, Instrument
from orders.enums import Side
from orders.models import Order, Trade
from tests import trading
from tests.backoffice import users
from tests.backoffice.admin_client import live_parts
from tests.backoffice.users import ADMINISTRATOR, OPERATOR, ROLES, VIEWER
from tests.trading import place
from webhooks import services as webhooks
from webhooks.models import Delivery, Event, EventType, Subscription

pytestmark = pytest.mark.django_db

OPERATORS, ADMINISTRATORS = {OPERATOR, ADMINISTRATOR}, {ADMINISTRATOR}
ROLES_BY_PERMISSION = {
    "exchange.admit_broker": OPERATORS,
    "exchange.suspend_broker": OPERATORS,
    "exchange.stop_broker": OPERATORS,
    "exchange.list_instrument": OPERATORS,
    "exchange.edit_instrument": OPERATORS,
    "exchange.halt_instrument": OPERATORS,
    "exchange.halt_market": OPERATORS,
    "exchange.book_transfer": OPERATORS,
    "exchange.issue_key": OPERATORS,
    "exchange.revoke_key": OPERATORS,
    "orders.cancel_order": OPERATORS,
    "orders.run_reconcile": OPERATORS,
    "webhooks.pause_subscription": OPERATORS,
    "webhooks.redeliver_delivery": OPERATORS,
    "auth.view_user": ADMINISTRATORS,
    "auth.add_user": ADMINISTRATORS,
    "auth.change_user": ADMINISTRATORS,
    "auth.delete_user": ADMINISTRATORS,
    "auth.view_group": ADMINISTRATORS,
}
OURS = ["exchange", "orders", "webhooks"]
INLINE = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>|<[^>]+\son[a-z]+=", re.I)


def operator_actions() -> Iterator[tuple[type[Model], OperatorAction]]:
    """Yield every registered action."""
    for model, pages in admin.site._registry.items():
        for action in getattr(pages, "operator_actions", ()):
            yield model, action


def registered() -> list[type[Model]]:
    return [model for model, pages in admin.site._registry.items() if isinstance(pages, ExchangeModelAdmin)]


def browsers_of_all_roles() -> dict[str, Client]:
    """Return the browsers of each role, of a user without groups, of a non-staff user, and of a visitor."""
    outsider = Client()
    outsider.force_login(User.objects.create_user("outsider"))
    return {role: users.browser(role) for role in ROLES} | {
        "nothing": users.browser("nothing"),
        "outsider": outsider,
        "stranger": Client(),
    }


@pytest.fixture
def market(transactional_db: None) -> None:
    """Rows that the actions apply to."""
    trading.instrument()
    trading.broker("alice")
    place(Side.ASK, 5, "10")
    webhooks.subscribe("alice", url="http://127.0.0.1:9/", events=[EventType.ORDER_EXPIRED])


def stored_state() -> Any:
    return trading.snapshot(), list(User.objects.order_by("pk").values()), AuditEntry.objects.count()


def is_login_redirect(answer: Any) -> bool:
    return bool(answer.status_code == 302 and answer.headers["Location"].startswith("/admin/login/?next=/admin/"))


# --- Groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_group_has_the_permissions_of_its_role_and_no_other(role: str) -> None:
    granted = Group.objects.get(name=role).permissions.values_list("content_type__app_label", "codename")
    views = {f"{label}.{codename}" for label, codename in granted if label in OURS and codename.startswith("view_")}
    others = {".".join(permission) for permission in granted} - views

    assert others == {permission for permission, who in ROLES_BY_PERMISSION.items() if role in who}
    ours = Permission.objects.filter(content_type__app_label__in=OURS, codename__startswith="view_")
    assert views == {f"{label}.{name}" for label, name in ours.values_list("content_type__app_label", "codename")}
    assert {f"{model._meta.app_label}.view_{model._meta.model_name}" for model in registered()} <= views


def test_every_action_permission_belongs_to_a_role() -> None:
    """A new permission needs a migration that grants it to a group."""
    default = ("add_", "change_", "delete_", "view_")
    for permission in Permission.objects.filter(content_type__app_label__in=OURS).select_related("content_type"):
        if not permission.codename.startswith(default):
            assert f"{permission.content_type.app_label}.{permission.codename}" in ROLES_BY_PERMISSION


def test_only_the_intended_models_are_registered() -> None:
    """Django's own admin pages would write rows without audit entries."""
    assert set(admin.site._registry) - set(registered()) == {User}


# --- Actions --------------------------------------------------------------------------------------------------------


def test_actions_are_refused_without_permission_at_their_own_urls(market: None) -> None:
    browsers = browsers_of_all_roles()
    before = stored_state()
    for model, action in operator_actions():
        for who in browsers.keys() - ROLES_BY_PERMISSION[action.permission]:
            for answer in responses(browsers[who], model, action):
                if who in ("stranger", "outsider"):
                    assert is_login_redirect(answer), (action.name, who)
                else:
                    assert answer.status_code == 403, (action.name, who)
    assert stored_state() == before


@pytest.mark.parametrize(
    ("model", "action"), list(operator_actions()), ids=lambda each: getattr(each, "name", each.__class__)
)
def test_actions_are_allowed_for_their_roles(market: None, model: type[Model], action: OperatorAction) -> None:
    users.user(VIEWER)  # a user to act on
    for who in ROLES_BY_PERMISSION[action.permission]:
        for answer in responses(users.browser(who), model, action):
            assert answer.status_code in (200, 302), who


def responses(browser: Client, model: type[Model], action: OperatorAction) -> Iterator[Any]:
    """Yield the responses of the action's page and of a submission without a reason."""
    row = model._default_manager.first() if action.max_subjects else None
    yield browser.get(action_url(model, action, row) if row else action_url(model, action))
    yield browser.post(action_url(model, action), {"reason": ""})


@pytest.mark.parametrize("role", ROLES)
def test_buttons_are_hidden_without_permission(market: None, role: str) -> None:
    browser = users.browser(role)
    for model in registered():
        pages = [reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")]
        if row := model._default_manager.first():
            pages.append(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[row.pk]))
        for page in pages:
            content = browser.get(page).content.decode()
            for of, action in operator_actions():
                if role not in ROLES_BY_PERMISSION[action.permission]:
                    assert action_url(of, action) not in content, (page, action.name)


# --- Pages ----------------------------------------------------------------------------------------------------------


def test_pages_need_their_view_permission(market: None) -> None:
    users.user(VIEWER)
    browsers = browsers_of_all_roles()
    models: list[type[Model]] = [*registered(), User]
    for model in models:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        row = model._default_manager.first()
        change = [reverse(f"admin:{name}_change", args=[row.pk])] if row else []
        may = ADMINISTRATORS if model is User else {*ROLES}
        for path, (who, browser) in product([reverse(f"admin:{name}_changelist"), *change], browsers.items()):
            answer = browser.get(path)
            if who in ("stranger", "outsider"):
                assert is_login_redirect(answer), (who, path)
            else:
                assert answer.status_code == (200 if who in may else 403), (who, path)
                assert not INLINE.search(answer.content.decode()), (who, path)  # blocked by the content security policy


@pytest.mark.parametrize("model", registered(), ids=lambda model: model.__name__)
def test_add_and_delete_forms_are_off(market: None, model: type[Model]) -> None:
    name = f"{model._meta.app_label}_{model._meta.model_name}"
    row = model._default_manager.first()
    browser = users.browser(users.SUPERUSER)
    before = stored_state()
    for path in [reverse(f"admin:{name}_add"), *([reverse(f"admin:{name}_delete", args=[row.pk])] if row else [])]:
        assert [browser.get(path).status_code, browser.post(path, {"post": "yes"}).status_code] == [403, 403]
    assert stored_state() == before


PLAIN = ["", "password_change/", "password_change/done/", "two-factor/", "two-factor/setup/", "search/", "jsi18n/"]
PLAIN += ["autocomplete/", "nothing/", "exchange/", "auth/", "r/1/1/"]
PLAIN += [f"{name}/export/" for name in ("orders/order", "orders/trade", "exchange/transfer", "exchange/auditentry")]


@pytest.mark.parametrize("path", [f"/admin/{path}" for path in PLAIN])
def test_signed_out_visitors_are_redirected_to_the_login_everywhere(path: str) -> None:
    assert is_login_redirect(Client().get(path))
    outsider = Client()
    outsider.force_login(User.objects.create_user("outsider"))
    assert is_login_redirect(outsider.get(path))


# --- Refresh --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Order, Trade, Instrument, Broker, Subscription, Delivery, Event, AuditEntry])
def test_live_lists_refresh_automatically(root: Client, model: type[Model]) -> None:
    assert "rows" in live_parts(root.get(list_url(model)))


# --- Error pages ----------------------------------------------------------------------------------------------------


def test_error_pages_use_the_layout_and_link_to_the_dashboard() -> None:
    browser = users.browser(VIEWER)
    for path, status in (("/admin/nothing/", 404), ("/admin/auth/user/", 403), ("/admin/orders/order/x/change/", 404)):
        answer = browser.get(path)
        content = answer.content.decode()
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
        assert 'href="/admin/orders/order/"' in content  # the sidebar
        assert "Go to dashboard" in content


@pytest.mark.parametrize("path", [*PLAIN, "exchange/broker/x/change/", "exchange/broker/stop/?id=x", "login/"])
def test_responses_are_never_cached(path: str) -> None:
    for browser in (users.browser(VIEWER), Client()):
        assert "no-store" in browser.get(f"/admin/{path}").headers["Cache-Control"]


def test_a_form_without_csrf_token_is_rejected_with_a_page() -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(users.user(OPERATOR))
    answer = browser.post("/admin/password_change/", {"old_password": "x"})
    assert answer.status_code == 403
    assert "nothing was done" in answer.content.decode()
    assert 'href="/admin/orders/order/"' in answer.content.decode()
