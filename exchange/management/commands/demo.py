"""`manage.py demo`: two brokers, an operator and an administrator, with their keys in one file."""

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
    help = "Create the demo brokers, an operator's key and an administrator, once; keep what still works on later runs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--credentials", type=Path, required=True, help="the JSON file to keep keys in (mode 0600)")
        parser.add_argument("--base-url", required=True, help="where the exchange is reached, for the same file")
        parser.add_argument(
            "--admin-url", help="where the back office is reached, likewise (/admin/ there unless given)"
        )

    def handle(self, *, credentials: Path, base_url: str, admin_url: str | None, **_: Any) -> None:
        kept = _read(credentials)
        brokers = {broker_id: key for broker_id, key in _dict(kept, "brokers").items() if _acts_for(key, broker_id)}
        brokers |= {broker_id: _new_broker_key(broker_id) for broker_id in BROKERS if broker_id not in brokers}
        operator_key = kept.get("operator_key")
        found = {
            "base_url": base_url.rstrip("/"),
            "operator_key": operator_key if _acts_for(operator_key, None) else _new_operator_key(),
            "brokers": dict(sorted(brokers.items())),
            "admin": {
                "url": admin_url or f"{base_url.rstrip('/')}/admin/",
                "username": ADMIN,
                "password": _password(_dict(kept, "admin").get("password")),
            },
        }
        private_file.write(credentials, json.dumps(found, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """What an earlier run left; a file that is not ours to understand counts as none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _dict(kept: dict[str, Any], name: str) -> dict[str, Any]:
    value = kept.get(name)
    return value if isinstance(value, dict) else {}


def _acts_for(key: object, broker_id: str | None) -> bool:
    """Whether this key works and belongs to this broker, or to an operator."""
    try:
        principal = authenticate_key(str(key))
    except Unauthenticated:
        return False
    return principal.broker_id == broker_id


def _new_broker_key(broker_id: str) -> str:
    """The first key of a new broker, or one more of a broker whose key was lost."""
    try:
        return services.create_broker(broker_id, initial_cash=INITIAL_CASH, initial_holdings=INITIAL_HOLDINGS, by=BY)[1]
    except BrokerAlreadyExists:
        return services.issue_key(broker_id, name="demo", by=BY)[1]


def _new_operator_key() -> str:
    return services.issue_key(None, name="demo", scopes=(Scope.OPERATOR,), by=BY)[1]


def _password(kept: object) -> str:
    """The administrator's password: the kept one while it works, else a new one."""
    user, created = User.objects.get_or_create(username=ADMIN, defaults={"is_staff": True, "is_superuser": True})
    if not created and isinstance(kept, str) and user.check_password(kept):
        return kept
    password = secrets.token_urlsafe(12)
    user.set_password(password)
    user.save(update_fields=["password"])
    return password
