"""The OpenAPI document is valid and complete, and its page loads no external files (contract: "Conventions")."""

import json
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django import Settings

from tests.exchange.client import Client

PROBLEM = {"$ref": "#/components/schemas/Problem"}


@pytest.fixture
def document(anonymous: Client) -> dict[str, Any]:
    answer = anonymous.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = json.loads(answer.content)
    return found


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def _every_schema(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _every_schema(child)


def test_the_document_is_valid_and_builds_without_warnings() -> None:
    call_command("spectacular", urlconf="config.urls", validate=True, fail_on_warn=True, stdout=StringIO())


def test_every_operation_has_a_unique_id_and_a_summary(document: dict[str, Any]) -> None:
    operations = list(_operations(document))

    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    assert all(operation["summary"] for _, _, operation in operations)
    assert not [path for path in document["paths"] if path != "/" and path.endswith("/")]


def test_every_operation_describes_its_rejections(document: dict[str, Any]) -> None:
    for path, method, operation in _operations(document):
        refusals = {"400", "405", "503", "504"} | ({"401", "403"} if "security" in operation else set())
        refusals |= {"413", "415"} if method == "post" else set()
        assert refusals <= operation["responses"].keys(), (path, method)
        for status, response in operation["responses"].items():
            if status >= "400" and path != "/readyz":
                assert response["content"] == {"application/problem+json": {"schema": PROBLEM}}


def test_every_body_rejects_additional_properties(document: dict[str, Any]) -> None:
    for _, method, operation in _operations(document):
        if method == "post":
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            assert document["components"]["schemas"][name]["additionalProperties"] is False


def test_decimals_are_numbers_and_enums_are_shared(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert not [found for found in _every_schema(document) if found.get("format") == "decimal"]
    assert schemas["BalanceBody"]["properties"]["cash_balance"]["type"] == "number"
    assert schemas["BalanceBody"]["required"] == list(schemas["BalanceBody"]["properties"])
    assert schemas["ListInstrumentForm"]["properties"]["pricing"]["$ref"] == "#/components/schemas/Pricing"
    assert schemas["InstrumentBody"]["properties"]["pricing"]["$ref"] == "#/components/schemas/Pricing"
    assert schemas["Pricing"]["enum"] == ["maker", "seller"]
    assert not [name for name in schemas if name.endswith("Enum")]


def test_an_amount_is_a_number_or_digits(document: dict[str, Any]) -> None:
    cash = document["components"]["schemas"]["CreateBrokerForm"]["properties"]["initial_cash"]

    number, text = ({name: value for name, value in each.items() if name != "description"} for each in cash["oneOf"])
    assert number == {"type": "number", "minimum": 0, "maximum": 10**15}
    assert text == {"type": "string", "pattern": r"^[0-9]{1,16}(\.[0-9]{1,4})?$"}


def test_paths_and_queries_describe_their_parameters(document: dict[str, Any]) -> None:
    parameters = document["paths"]["/brokers/{broker_id}/transfers"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter["schema"] for parameter in parameters}

    assert by_name["broker_id"] == {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
    assert by_name["limit"] == {"type": "integer", "format": "int64", "minimum": 1, "maximum": 500, "default": 50}
    assert by_name.keys() == {"broker_id", "limit", "cursor"}


def test_the_description_of_a_quote_has_the_limit_of_orders(document: dict[str, Any], settings: Settings) -> None:
    most = f"the best {settings.MAX_MAKERS_PER_QUOTE:,} "

    assert most in document["paths"]["/stocks/{symbol}/quote"]["get"]["description"]
    assert most in document["components"]["schemas"]["Quote"]["description"]


def test_the_documentation_page_loads_no_external_files(anonymous: Client) -> None:
    page = anonymous.get("/docs", Host="some.where").content.decode()
    script = anonymous.get("/docs?script=", Host="some.where")
    links = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert script.status == 200
    assert '"/openapi.json"' in script.content.decode()
    assert "http" not in page.replace("<!DOCTYPE html>", "")
    assert len(links) == 5
    assert [link for link in links if not link.startswith(("/static/", "/docs?"))] == []
