"""`manage.py demo`: creates two brokers, an operator key and an administrator, and writes their keys to a file."""

import json
import secrets
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandParser

from exchange import private_file, services
from exchange.audit import Actor, ActorKind
from exchange.errors import BrokerAlreadyExists, Unauthenticated
from exchange.keys import authenticate_key
from exchange.rules import Scope

BROKERS = ["broker-1", "broker-2"]
INITIAL_CASH = Decimal(1_000_000)
INITIAL_HOLDINGS = {"AAPL": 10_000, "GOOG": 10_000, "PETR4": 10_000}
ADMIN = "admin"
BY = Actor(ActorKind.COMMAND, "manage.py demo")


class Command(BaseCommand):
    help = "Create the demo brokers, an operator key and an administrator. Later runs keep the credentials that work."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--credentials", type=Path, required=True, help="JSON file of the keys (mode 0600)")
        parser.add_argument("--base-url", required=True, help="URL of the API, written to the file")
        parser.add_argument(
            "--admin-url", help="URL of the back office, written to the file (default: the base URL + /admin/)"
        )

    def handle(self, *, credentials: Path, base_url: str, admin_url: str | None, **_: Any) -> None:
        stored = _read(credentials)
        brokers = {broker_id: key for broker_id, key in _dict(stored, "brokers").items() if _acts_for(key, broker_id)}
        brokers |= {broker_id: _new_broker_key(broker_id) for broker_id in BROKERS if broker_id not in brokers}
        operator_key = stored.get("operator_key")
        contents = {
            "base_url": base_url.rstrip("/"),
            "operator_key": operator_key if _acts_for(operator_key, None) else _new_operator_key(),
            "brokers": dict(sorted(brokers.items())),
            "admin": {
                "url": admin_url or f"{base_url.rstrip('/')}/admin/",
                "username": ADMIN,
                "password": _password(_dict(stored, "admin").get("password")),
            },
        }
        private_file.write(credentials, json.dumps(contents, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Read the file of an earlier run; an unreadable one counts as empty."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _dict(stored: dict[str, Any], name: str) -> dict[str, Any]:
    value = stored.get(name)
    return value if isinstance(value, dict) else {}


def _acts_for(key: object, broker_id: str | None) -> bool:
    """True if this key works and belongs to this broker, or to an operator if None."""
    try:
        principal = authenticate_key(str(key))
    except Unauthenticated:
        return False
    return principal.broker_id == broker_id


def _new_broker_key(broker_id: str) -> str:
    """Create the broker with its first key, or another key if the broker exists."""
    try:
        return services.create_broker(broker_id, initial_cash=INITIAL_CASH, initial_holdings=INITIAL_HOLDINGS, by=BY)[1]
    except BrokerAlreadyExists:
        return services.issue_key(broker_id, name="demo", by=BY)[1]


def _new_operator_key() -> str:
    return services.issue_key(None, name="demo", scopes=(Scope.OPERATOR,), by=BY)[1]


def _password(stored: object) -> str:
    """Return the administrator's password: the stored one if it works, otherwise a new one."""
    user, created = User.objects.get_or_create(username=ADMIN, defaults={"is_staff": True, "is_superuser": True})
    if not created and isinstance(stored, str) and user.check_password(stored):
        return stored
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save(update_fields=["password"])
    return password
