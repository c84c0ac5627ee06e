"""The tables of the documentation agree with the code."""

import ast
import inspect
import json
import re
import runpy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings as real_settings
from pytest_django import Settings
from rest_framework import serializers

import config.urls
from exchange import services as exchange_services
from exchange.http.fields import StrictSerializer
from exchange.http.filters import Filters
from exchange.http.problems import STATUSES
from exchange.rules import MAX_INITIAL_CASH, MAX_REASON_LENGTH, Scope
from orders import services
from tests import api, trading
from tests.api import LATER, LIMIT
from tests.exchange.client import Client
from tests.live import ROOT
from tests.trading import BY
from webhooks.addresses import AddressProfile

ERRORS, SETTINGS = ((ROOT / "docs" / name).read_text() for name in ("errors.md", "settings.md"))
SETTINGS_PY = ROOT / "config" / "settings" / "base.py"
PACKAGES = ("backoffice", "exchange", "gateway", "orders", "tools", "webhooks")
SOURCES = [path for name in ("config", *PACKAGES) for path in (ROOT / name).rglob("*.py")]
PRODUCT = [ROOT / "manage.py", *(path for path in SOURCES if "migrations" not in path.parts)]
NOT_OURS = {"Django", "REST", "Celery"}  # sections of base.py


def section(page: str, title: str) -> str:
    """Return the text under a heading of the second level."""
    return re.split(r"^## ", page.split(f"\n## {title}\n")[1], flags=re.M)[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of every row that begins with a `name`, without its backticks."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    return [[first.strip("`"), *others] for first, *others in found]


def column(text: str, number: int) -> dict[str, str]:
    """Return one cell of each row by its first cell, which must be unique."""
    found = rows(text)
    assert len({row[0] for row in found}) == len(found)
    return {row[0]: row[number] for row in found}


def modules() -> Iterator[tuple[ModuleType, ast.Module]]:
    """Yield every module of the product, with its syntax tree."""
    for path in PRODUCT:
        name, *more = path.relative_to(ROOT).with_suffix("").parts
        if name in PACKAGES and path.stem != "__init__":
            yield import_module(".".join([name, *more])), ast.parse(path.read_text())


# --- Errors ---------------------------------------------------------------------------------------------------------


def test_the_page_has_every_code_with_its_status() -> None:
    assert column(section(ERRORS, "Codes"), 1) == {code: str(int(status)) for code, status in STATUSES.items()}


@pytest.mark.django_db(transaction=True)
def test_the_example_is_a_real_response() -> None:
    sent, shown = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", ERRORS, re.S))

    response = api.assert_rejected(api.broker(sent["broker_id"]), "POST", "/orders", sent)

    assert response.body == shown | {"request_id": response.body["request_id"]}
    assert list(response.body) == list(shown)


BUY = LIMIT | {"broker_id": "alice", "symbol": "LOTS"}  # the instrument's lot is 10
TRANSFER = {"reference": "r", "cash": 1, "reason": "x"}
HOLDING = {"symbol": "AAPL", "quantity": 1}
HOOK = {"broker_id": "alice", "url": "https://broker.example/hooks", "events": ["order.expired"]}
# A request for each code: client, path and body.
BAD_FIELDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "required": ("alice", "/orders", {}),
    "null": ("alice", "/orders", BUY | {"side": None}),
    "invalid": ("alice", "/orders", BUY | {"side": "buy"}),
    "pattern": ("alice", "/orders", BUY | {"symbol": "aapl"}),
    "min_value": ("alice", "/orders", BUY | {"price": 0}),
    "range": ("alice", "/orders", BUY | {"quantity": 0}),
    "notional_too_large": ("alice", "/orders", BUY | {"price": 10**12, "quantity": 10**12}),
    "not_allowed": ("alice", "/orders", BUY | {"expires_at": LATER}),
    "off_tick": ("alice", "/orders", BUY | {"price": "10.001"}),
    "off_lot": ("alice", "/orders", BUY | {"quantity": 11}),
    "too_precise": ("alice", "/orders", BUY | {"time_in_force": "gtd", "expires_at": "2099-01-01T00:00:00.0000001Z"}),
    "in_the_past": ("alice", "/orders", BUY | {"time_in_force": "gtd", "expires_at": "2020-01-01T00:00:00Z"}),
    "differs": ("alice", "/orders", BUY | {"client_order_id": "used", "side": "ask"}),
    "unknown_field": ("alice", "/orders", BUY | {"Price": 1}),
    "unknown_parameter": ("alice", "/orders?dry_run=1", BUY),
    "repeated": ("alice", "/orders?dry_run=1&dry_run=1", BUY),
    "min_length": ("operator", "/brokers/alice/transfers", TRANSFER | {"reason": ""}),
    "max_length": ("operator", "/brokers/alice/transfers", TRANSFER | {"reason": "x" * (MAX_REASON_LENGTH + 1)}),
    "nul": ("operator", "/brokers/alice/transfers", TRANSFER | {"reason": "\0"}),
    "cash_or_shares": ("operator", "/brokers/alice/transfers", TRANSFER | HOLDING),
    "max_value": ("operator", "/brokers", {"broker_id": "b", "initial_cash": MAX_INITIAL_CASH + 1}),
    "not_a_list": ("operator", "/brokers", {"broker_id": "b", "initial_cash": 0, "initial_holdings": 1}),
    "duplicate": ("operator", "/brokers", {"broker_id": "b", "initial_cash": 0, "initial_holdings": [HOLDING] * 2}),
    "https_required": ("alice", "/webhooks", HOOK | {"url": "http://broker.example/hooks"}),
    "blocked_address": ("alice", "/webhooks", HOOK | {"url": "https://169.254.169.254/"}),
}


@pytest.mark.django_db(transaction=True)
def test_every_code_of_a_field_on_the_page_can_be_produced(settings: Settings) -> None:
    settings.WEBHOOK_ADDRESSES = AddressProfile.PUBLIC
    clients = {"alice": api.broker("alice"), "operator": api.operator()}
    trading.instrument("LOTS", lot=10)
    api.place_order(clients["alice"], BUY | {"quantity": 10, "client_order_id": "used"})

    met = {
        code: api.assert_rejected(clients[name], "POST", path, body) for code, (name, path, body) in BAD_FIELDS.items()
    }

    assert {code for code, response in met.items() if code in response.fields.values()} == BAD_FIELDS.keys()
    assert column(section(ERRORS, "Codes of fields"), 1).keys() == BAD_FIELDS.keys()


def test_every_code_of_a_field_is_on_the_page() -> None:
    assert config.urls.urlpatterns  # loads every serializer
    of_fields = {code for field in fields() for code in codes(field)}

    assert column(section(ERRORS, "Codes of fields"), 1).keys() == of_fields | written_codes()


def fields() -> Iterator[serializers.Field[Any, Any, Any, Any]]:
    """Yield every field of bodies and queries, including the items of lists."""
    found = [field for form in kinds(StrictSerializer) for field in form().fields.values()]
    found += [each.value_field for filters in kinds(Filters) for each in filters.base_filters.values()]
    for field in found:
        yield field
        if isinstance(field, serializers.ListField):
            yield field.child


def kinds(base: type[Any]) -> list[type[Any]]:
    return [found for kind in base.__subclasses__() for found in [kind, *kinds(kind)]]


def codes(field: Any) -> set[str]:
    """Return the codes that a field has a message for, without those that it cannot produce."""
    off = {"required": not field.required, "null": field.allow_null}
    if isinstance(field, serializers.ListField):
        off |= {"empty": field.allow_empty, "min_length": not field.min_length, "max_length": not field.max_length}
    return {code for code in field.error_messages if not off.get(code)}


def written_codes() -> set[str]:
    """Return every literal in the sources that is passed as an argument `code`; other arguments are an error's code."""
    found: set[str] = set()
    for module, tree in modules():
        for node in ast.walk(tree):
            argument = code_argument(module, node)
            if isinstance(argument, ast.Constant):
                found.add(str(argument.value))
            elif argument is not None:
                assert re.search(r"\.code\b|\['code'\]", ast.unparse(argument)), ast.unparse(argument)
    return found


def code_argument(module: ModuleType, node: ast.AST) -> ast.expr | None:
    """Return the argument `code` of a call, if its function is in the module's namespace and has this parameter."""
    if not isinstance(node, ast.Call):
        return None
    called: Any = module
    for name in ast.unparse(node.func).split("."):
        called = getattr(called, name, None)
    try:
        bound = inspect.signature(called).bind_partial(
            *node.args, **{str(each.arg): each.value for each in node.keywords}
        )
    except (TypeError, ValueError):  # not callable, or without a signature
        return None
    argument: ast.expr | None = bound.arguments.get("code")
    return argument


@pytest.mark.django_db(transaction=True)
def test_rejections_have_the_precedence_of_the_page(settings: Settings) -> None:
    """Send a request that breaks every rule, and correct it rule by rule."""
    alice, bob, anonymous = api.broker("alice"), api.broker("bob"), Client(None)
    reader = Client(exchange_services.issue_key("alice", scopes=[Scope.READ], by=BY)[1])
    for client_order_id in ("used", "another"):
        api.place_order(bob, api.limit("ask", 1, "10", broker_id="bob"))
        api.place_order(alice, api.limit("bid", 1, "1", client_order_id=client_order_id))
    exchange_services.halt("AAPL", by=BY)
    services.suspend("alice", cancel_orders=False, by=BY)
    trading.limit_makers(settings, 1)
    settings.MAX_OPEN_ORDERS = 2
    met = []

    def reject(client: Client, body: Any, method: str = "POST", path: str = "/orders", **options: str) -> None:
        met.append(api.assert_rejected(client, method, path, body, **options).code)

    too_long = b"{" * (real_settings.MAX_BODY_BYTES + 1)
    reject(anonymous, too_long, "PUT", "/order", content_type="text/plain")
    reject(anonymous, too_long, "PUT", content_type="text/plain")
    reject(reader, too_long, "PUT", content_type="text/plain")
    reject(reader, too_long, content_type="text/plain")
    reject(reader, too_long)
    reject(reader, b"{")
    order = api.limit("bid", 0, "10.001", broker_id="bob", symbol="NONE", client_order_id="used")
    reject(reader, order)
    reject(alice, order)
    reject(alice, order := order | {"broker_id": "alice"})
    reject(alice, order := order | {"quantity": 10**9})
    reject(alice, order := order | {"symbol": "AAPL"})
    reject(alice, order := order | {"client_order_id": "new"})
    reject(alice, order := order | {"price": "10"})
    exchange_services.resume("AAPL", by=BY)
    reject(alice, order)
    services.reinstate("alice", by=BY)
    reject(alice, order)
    settings.MAX_OPEN_ORDERS = 3
    reject(alice, order)
    reject(alice, order | {"side": "ask"})
    reject(alice, order | {"quantity": 2})

    steps = [line for line in section(ERRORS, "The order of refusals").splitlines() if line[:1].isdigit()]
    assert met == [name for line in steps for name in re.findall(r"`(\w+)`", line) if name in STATUSES]


# --- Settings -------------------------------------------------------------------------------------------------------


def test_the_page_has_every_environment_variable() -> None:
    ours = column(section(SETTINGS, "From the environment"), 1).keys()
    others = column(section(SETTINGS, "Other variables"), 1).keys()

    assert ours == environment_names(SETTINGS_PY)
    assert others == set().union(*map(environment_names, PRODUCT)) - ours


def environment_names(path: Path) -> set[str]:
    """Return the environment variables that a source file reads."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case (
                ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name)))
                | ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="environ")), args=[ast.Constant(value=str(name)), *_]
                )
                | ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(value=str(name)), *_])
                | ast.Compare(left=ast.Constant(value=str(name)), comparators=[ast.Attribute(attr="environ")])
            ):
                found.add(name)
    return found


def test_each_default_equals_the_value_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    page = section(SETTINGS, "From the environment")
    defaults, examples = column(page, 2), column(page, 3)
    required = {name: examples[name] for name, default in defaults.items() if default == "required"}
    plain = loaded(monkeypatch, required)

    for name in required:
        with pytest.raises(KeyError, match=name):
            loaded(monkeypatch, {other: value for other, value in required.items() if other != name})
    for name in defaults.keys() - required.keys():
        assert loaded(monkeypatch, required | {name: defaults[name]}) == plain
        assert loaded(monkeypatch, required | {name: examples[name]}) != plain


def loaded(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> dict[str, Any]:
    """Return the settings in an environment with only these variables."""
    for name in environment_names(SETTINGS_PY):
        monkeypatch.delenv(name, raising=False)
    for name, cell in environment.items():
        monkeypatch.setenv(name, cell.strip("`"))
    return {name: value for name, value in runpy.run_path(str(SETTINGS_PY)).items() if name.isupper()}


def test_the_page_has_every_limit_with_its_value() -> None:
    values = runpy.run_path(str(SETTINGS_PY))
    limits: dict[str, str] = {}
    for name in names_of_our_sections() - environment_names(SETTINGS_PY):
        value = values[name]
        parts = {f'["{key}"]': part for key, part in value.items()} if isinstance(value, dict) else {"": value}
        limits |= {f"{name}{key}": shown(part) for key, part in parts.items()}

    assert column(section(SETTINGS, "Limits and timeouts"), 1) == limits


def names_of_our_sections() -> set[str]:
    """Return the names that base.py assigns outside the sections of frameworks."""
    _, *parts = re.split(r"^# --- (.+?) -+$", SETTINGS_PY.read_text(), flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert sections.keys() >= NOT_OURS
    ours = [text for title, text in sections.items() if title not in NOT_OURS]
    return {name for text in ours for name in re.findall(r"^([A-Z]\w*)(?:: .+?)? = ", text, re.M)}


def test_the_page_has_every_limit_of_other_modules_with_its_value() -> None:
    """Any constant may be on the page; those whose name begins with `MAX_` must be."""
    page = column(section(SETTINGS, "Limits elsewhere"), 1)
    maxima = {
        f"{module.__name__}.{node.id}"
        for module, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.startswith("MAX_")
    }

    assert page == {name: shown(constant(name)) for name in page}
    assert not maxima - page.keys()


def constant(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def shown(value: Any) -> str:
    """Return a value as it is written on the page."""
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- All pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_every_link_has_a_target(page: Path) -> None:
    links = [link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    for path, _, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_api_serves_its_guide_with_the_pages_that_it_links_to() -> None:
    served = ROOT / "exchange" / "static" / "docs"
    links = {link for page in served.iterdir() for link in re.findall(r"\]\((\w+\.md)", page.read_text())}

    assert "(/static/docs/brokers.md)" in str(real_settings.SPECTACULAR_SETTINGS["DESCRIPTION"])
    assert links | {"brokers.md"} == {page.name for page in served.iterdir()}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
