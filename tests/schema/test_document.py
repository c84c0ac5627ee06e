"""The OpenAPI document is complete, and code generators and validators can use it."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from config import openapi
from exchange.http.schema import JSONSchema
from tests import api
from tests.exchange.client import Client
from tests.schema.market import OPERATORS_ONLY
from webhooks.models import EventType

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def document() -> JSONSchema:
    found: JSONSchema = json.loads(Client(None).get("/openapi.json").content)
    return found


def operations(document: JSONSchema) -> Iterator[tuple[str, str, JSONSchema]]:
    """Yield path, method and operation, in the order of the document."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of the document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def fields(document: JSONSchema) -> dict[str, JSONSchema]:
    """Return all properties and parameters, by `Component.property` and `operation.parameter`."""
    schemas = document["components"]["schemas"].items()
    found = {
        f"{name}.{inner}": each for name, schema in schemas for inner, each in schema.get("properties", {}).items()
    }
    for _, _, operation in operations(document):
        found |= {f"{operation['operationId']}.{each['name']}": each for each in operation.get("parameters", ())}
    return found


def test_everything_has_a_description(document: JSONSchema) -> None:
    described = fields(document) | document["components"]["schemas"]
    for _, _, operation in operations(document):
        name = operation["operationId"]
        described |= {name: operation} | {f"{name}.{status}": each for status, each in operation["responses"].items()}

    assert [name for name, each in described.items() if not each.get("description")] == []


def test_every_description_is_used(document: JSONSchema) -> None:
    names = fields(document).keys()
    general = {name.rpartition(".")[2] for name in names - openapi.DESCRIPTIONS.keys()}

    assert openapi.DESCRIPTIONS.keys() <= names | general


def test_generators_and_validators_can_use_every_schema(document: JSONSchema) -> None:
    """Integers have 64 bits, binary rounding rejects no price, and no reference to an enum is narrowed.

    openapi-generator writes an empty type for an `anyOf` of two types (Rust), an exact type for a number without a
    format (Java, C#), and a function `NewX` for each component `X` (Go).
    """
    components = document["components"]["schemas"]
    assert [name for name in components if f"New{name}" in components] == []
    for node in nodes(document):
        assert sum(each.get("type") != "null" for each in node.get("anyOf", ())) <= 1
        if "integer" in node.get("type", ()):
            assert node["format"] == "int64"
        assert "multipleOf" not in node
        assert not ("number" in node.get("type", ()) and "format" in node)
        assert not ("enum" in node and node.keys() & {"allOf", "$ref"})


def test_operators_come_last(document: JSONSchema) -> None:
    tags = [tag["name"] for tag in document["tags"]]
    by_tag = {operation["operationId"]: operation["tags"] for _, _, operation in operations(document)}

    assert tags[-1] == "operators"
    assert [each for (each,) in by_tag.values() if each not in tags] == []
    assert {name for name, (tag,) in by_tag.items() if tag == "operators"} == OPERATORS_ONLY
    assert document["servers"] == [{"url": "/", "description": "The exchange that serves this document."}]


def test_the_operations_of_a_path_have_a_fixed_order(document: JSONSchema) -> None:
    for item in document["paths"].values():
        assert list(item) == [method for method in openapi.METHODS if method in item]


def test_the_webhooks_are_all_events_with_their_fields(document: JSONSchema) -> None:
    schemas = document["components"]["schemas"]
    tags = {tag["name"] for tag in document["tags"]}
    assert document["webhooks"].keys() == set(EventType)
    assert len({item["post"]["operationId"] for item in document["webhooks"].values()}) == len(EventType)
    for name, item in document["webhooks"].items():
        assert tags.isdisjoint(item["post"]["tags"])  # generators write one class per tag
        ((media, content),) = item["post"]["requestBody"]["content"].items()
        event = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        data = schemas[event["properties"]["data"]["$ref"].rpartition("/")[2]]
        assert (media, event["properties"]["event"]["const"]) == ("application/json", name)
        assert list(content["example"]) == event["required"]
        assert list(content["example"]["data"]) == data["required"]
        msgspec.json.decode(json.dumps(content["example"]["data"]), type=openapi.EVENTS[EventType(name)][1])


def test_every_example_works(document: JSONSchema) -> None:
    """Send each request that the document gives an example of, in its order, with the demo brokers of `make run`."""
    holdings = {"AAPL": 10_000, "GOOG": 10_000, "PETR4": 10_000}
    broker, operator = api.broker("broker-1", holdings=holdings), api.operator()
    sent = set()

    for path, method, operation in operations(document):
        client = operator if operation["tags"] == ["operators"] else broker
        for body in bodies(operation):
            answer = client.request(method.upper(), path_and_query(path, operation), body)
            assert answer.status == next(each for each in (201, 204, 200) if str(each) in operation["responses"]), (
                answer
            )
            assert {result["status"] for result in (answer.body if answer.content else {}).get("results", ())} <= {201}
            sent.add(operation["operationId"])

    assert sent >= {operation["operationId"] for _, _, operation in operations(document) if "requestBody" in operation}
    assert sent >= {"find_order", "cancel_orders", "list_orders", "get_quote", "list_webhooks", "delete_stock"}


def bodies(operation: JSONSchema) -> list[Any]:
    """Return the examples of the body. Without a body, it is None if the parameters have examples."""
    if "requestBody" in operation:
        return [each["value"] for each in operation["requestBody"]["content"]["application/json"]["examples"].values()]
    parameters = operation.get("parameters", [])
    are_complete = all("example" in each for each in parameters if each.get("required"))
    return [None] if are_complete and any("example" in each for each in parameters) else []


def path_and_query(path: str, operation: JSONSchema) -> str:
    """Fill in the examples of the parameters."""
    examples = {
        (each["in"], each["name"]): each["example"] for each in operation.get("parameters", ()) if "example" in each
    }
    path = path.format_map({name: value for (place, name), value in examples.items() if place == "path"})
    return f"{path}?" + "&".join(f"{name}={value}" for (place, name), value in examples.items() if place == "query")
