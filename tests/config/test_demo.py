"""`manage.py demo` can be repeated: it keeps valid credentials and replaces invalid ones."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import authenticate
from django.core.management import call_command
from django.test import RequestFactory

from exchange.keys import authenticate_key
from exchange.models import ApiKey, Broker, Holding

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN = RequestFactory().post("/admin/login/")  # attempts are counted by address


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "credentials.json"


def demo(path: Path, base_url: str = "http://127.0.0.1:8000") -> dict[str, Any]:
    port = int(base_url.strip("/").rpartition(":")[2])
    call_command("demo", credentials=path, base_url=base_url, admin_url=f"http://127.0.0.1:{port + 1}/admin/")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _authenticated(found: dict[str, Any]) -> object:
    return authenticate(LOGIN, username=found["admin"]["username"], password=found["admin"]["password"])


def test_the_demo_creates_two_brokers_an_operator_and_an_administrator(path: Path) -> None:
    found = demo(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert authenticate_key(found["operator_key"]).is_operator
    assert [authenticate_key(key).broker_id for key in found["brokers"].values()] == ["broker-1", "broker-2"]
    assert _authenticated(found) is not None
    assert Broker.objects.get(pk="broker-1").cash == 1_000_000
    holdings = Holding.objects.filter(broker="broker-2", quantity=10_000).order_by("instrument_id")
    assert list(holdings.values_list("instrument_id", flat=True)) == ["AAPL", "GOOG", "PETR4"]


def test_a_second_run_changes_only_the_address(path: Path) -> None:
    first = demo(path)
    assert demo(path, "http://127.0.0.1:9000/") == first | {
        "base_url": "http://127.0.0.1:9000",
        "admin": first["admin"] | {"url": "http://127.0.0.1:9001/admin/"},
    }


def test_a_lost_file_is_replaced_with_new_keys_of_the_same_brokers(path: Path) -> None:
    first = demo(path)
    path.unlink()
    second = demo(path)
    assert authenticate_key(second["brokers"]["broker-1"]).broker_id == "broker-1"
    assert second["brokers"] != first["brokers"]
    assert _authenticated(second) is not None


@pytest.mark.parametrize("damage", ["", "[]", '{"brokers": 3, "admin": []}', '{"operator_key": null}'])
def test_a_damaged_file_is_replaced(path: Path, damage: str) -> None:
    path.write_text(damage)
    assert authenticate_key(demo(path)["operator_key"]).is_operator


def test_keys_that_no_longer_work_are_replaced(path: Path) -> None:
    first = demo(path)
    ApiKey.objects.filter(broker="broker-2").delete()
    second = demo(path)
    assert second["brokers"]["broker-1"] == first["brokers"]["broker-1"]
    assert second["brokers"]["broker-2"] != first["brokers"]["broker-2"]
