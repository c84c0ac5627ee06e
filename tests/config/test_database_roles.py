"""The two accounts of the database: the runtime account has only the rights that the exchange needs.

The commands of `make run` and `docker-compose.yml` create the accounts and run the migrations.
"""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from config.local import web
from config.local.processes import Child
from config.local.servers import free_port
from tests import live

pytestmark = pytest.mark.processes

DATABASE = "bourse_with_roles"
OWNER, RUNTIME = "tests_owner", "tests_app"
DENIED = psycopg.errors.InsufficientPrivilege


@dataclass(frozen=True, slots=True)
class Accounts:
    """A database with separate owner and runtime accounts, and their environments."""

    admin_url: str
    owner_url: str
    runtime_url: str

    def env(self, **variables: str) -> dict[str, str]:
        return os.environ | {"DATABASE_URL": self.runtime_url} | variables

    def manage(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(  # noqa: S603
            command, cwd=live.ROOT, env=self.env(**variables), capture_output=True, text=True, check=False
        )

    def set_up(self) -> None:
        admin = {"DATABASE_OWNER_URL": self.owner_url, "DATABASE_ADMIN_URL": self.admin_url}
        for command, variables in [
            ("create_roles", admin | {"DATABASE_PASSWORD": "a'b %", "DATABASE_OWNER_PASSWORD": "c"}),
            ("migrate", {"DATABASE_OWNER_URL": self.owner_url}),
        ]:
            done = self.manage(command, **variables)
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def empty_database() -> Iterator[Accounts]:
    base, _, _ = os.environ["DATABASE_URL"].rpartition("/")
    admin_url = f"{base}/{DATABASE}"
    name = sql.Identifier(DATABASE)
    with psycopg.connect(f"{base}/postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        superuser = connection.info.user
        urls = (admin_url.replace(f"//{superuser}@", f"//{role}@") for role in (superuser, OWNER, RUNTIME))
        yield Accounts(*urls)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        for role in (OWNER, RUNTIME):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def accounts(empty_database: Accounts) -> Accounts:
    empty_database.set_up()
    return empty_database


@pytest.fixture
def runtime(accounts: Accounts) -> Iterator[psycopg.Connection]:
    with psycopg.connect(accounts.runtime_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def owner(accounts: Accounts) -> Iterator[psycopg.Connection]:
    with psycopg.connect(accounts.owner_url, autocommit=True) as connection:
        yield connection


# --- Rights of the runtime account ----------------------------------------------------------------------------------


def test_the_exchange_trades_and_reconciles_with_the_runtime_account(accounts: Accounts, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials.json"
    demo = accounts.manage("demo", "--credentials", str(credentials), "--base-url", "http://127.0.0.1")
    assert demo.returncode == 0, demo.stderr
    keys = json.loads(credentials.read_text())
    port = free_port()
    child = Child("web", web.api_command(port), log=tmp_path / "web.log", env=accounts.env(), cwd=live.ROOT)
    server = live.Server(child, port)
    server.start()
    try:
        for side in ("ask", "bid"):
            assert _post(port, "/orders", keys["brokers"]["broker-1"], ORDER | {"side": side}) == 201
        assert _post(port, "/stocks/AAPL/halt", keys["operator_key"], {"reason": "news"}) == 200
    finally:
        server.stop()
    reconciled = accounts.manage("reconcile")
    assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
    with psycopg.connect(accounts.runtime_url) as connection:
        assert connection.execute("SELECT count(*) FROM orders_order").fetchone() == (2,)
        assert connection.execute(
            "SELECT count(*) FROM exchange_auditentry WHERE action = 'instrument.halt'"
        ).fetchone()


ORDER = {"broker_id": "broker-1", "document_number": "12345678900", "symbol": "AAPL", "quantity": 1, "price": 10}
ORDER |= {"time_in_force": "gtc"}


def _post(port: int, path: str, key: str, body: dict[str, Any]) -> int:
    """Send a request and return the status of the response."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=live.RESPONSE_TIMEOUT_SECONDS)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        client.request("POST", path, json.dumps(body), headers)
        return client.getresponse().status
    finally:
        client.close()


def test_the_runtime_account_reads_and_writes_all_tables_except_migrations_and_audit(
    runtime: psycopg.Connection,
) -> None:
    rights = runtime.execute(
        "SELECT relname, array(SELECT lower(privilege) FROM unnest(%s::text[]) AS privilege"
        "  WHERE has_table_privilege(oid, privilege) ORDER BY 1)"
        " FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
        [["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN"]],
    ).fetchall()
    read_only = {"django_migrations", "exchange_auditentry", "exchange_audithead"}
    rows = ["delete", "insert", "select", "update"]
    assert {name: found for name, found in rights if found != rows} == {name: ["select"] for name in read_only}
    assert len(rights) > 20


# --- Denied statements ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE exchange_auditentry SET reason = 'another'",
        "DELETE FROM exchange_auditentry",
        "INSERT INTO exchange_auditentry SELECT * FROM exchange_auditentry",
        "TRUNCATE exchange_auditentry",
        "TRUNCATE orders_order",
        "ALTER TABLE exchange_auditentry DISABLE TRIGGER audit_only_grows",
        "SET session_replication_role = replica",
        "UPDATE exchange_audithead SET number = 0",
        "DELETE FROM exchange_audithead",
        "UPDATE django_migrations SET name = name",
        "COPY exchange_instrument FROM PROGRAM 'true'",
        "COPY exchange_instrument TO '/tmp/instruments'",
        "CREATE TABLE another ()",
        "CREATE TEMPORARY TABLE another ()",
        "CREATE SCHEMA another",
        "CREATE FUNCTION another() RETURNS int LANGUAGE sql RETURN 1",
        "CREATE OR REPLACE FUNCTION exchange_record_audit(entries json) RETURNS int LANGUAGE sql RETURN 1",
        "DROP FUNCTION exchange_record_audit",
        "DROP TABLE exchange_auditentry",
        "ALTER TABLE orders_order ADD COLUMN another int",
        "CREATE ROLE another",
        "CREATE DATABASE another",
        "ALTER SYSTEM SET fsync = off",
        f"SET ROLE {OWNER}",
    ],
)
def test_the_runtime_account_is_denied(runtime: psycopg.Connection, statement: str) -> None:
    with pytest.raises(DENIED):
        runtime.execute(statement)


def test_the_owner_is_not_a_superuser(owner: psycopg.Connection) -> None:
    for statement in [
        "SET session_replication_role = replica",
        "COPY exchange_instrument FROM PROGRAM 'true'",
        "ALTER SYSTEM SET fsync = off",
        "CREATE ROLE another",
        "CREATE DATABASE another",
    ]:
        with pytest.raises(DENIED):
            owner.execute(statement)


def test_an_audit_entry_is_recorded_with_any_search_path(runtime: psycopg.Connection) -> None:
    runtime.execute("SET search_path = pg_temp, pg_catalog")
    runtime.execute("SELECT public.exchange_record_audit(%s::json)", [json.dumps([ENTRY])])
    last = "SELECT entry.subject FROM exchange_auditentry entry JOIN exchange_audithead USING (number, hash)"
    runtime.execute("SET search_path = public")
    assert runtime.execute(last).fetchone() == ("b1",)


ENTRY = dict.fromkeys(("address", "request_id", "reason"), "")
ENTRY |= {"actor_kind": "user", "actor": "olga", "action": "broker.suspend", "subject": "b1"}


# --- Creation of the accounts ---------------------------------------------------------------------------------------


def test_the_runtime_account_may_use_tables_of_later_migrations(
    owner: psycopg.Connection, runtime: psycopg.Connection
) -> None:
    owner.execute("CREATE TABLE later (id bigint GENERATED ALWAYS AS IDENTITY)")
    try:
        runtime.execute("INSERT INTO later DEFAULT VALUES")
        assert runtime.execute("SELECT id FROM later").fetchall() == [(1,)]
        with pytest.raises(DENIED):
            runtime.execute("TRUNCATE later")
    finally:
        owner.execute("DROP TABLE later")


def test_passwords_are_stored_as_verifiers(accounts: Accounts) -> None:
    with psycopg.connect(accounts.admin_url) as connection:
        stored = connection.execute(
            "SELECT rolpassword LIKE 'SCRAM-SHA-256$%%' FROM pg_authid WHERE rolname = ANY(%s)", [[OWNER, RUNTIME]]
        ).fetchall()
    assert stored == [(True,), (True,)]


def test_create_roles_changes_the_owner_of_an_existing_database(accounts: Accounts, owner: psycopg.Connection) -> None:
    with psycopg.connect(accounts.admin_url) as connection:
        superuser = sql.Identifier(connection.info.user)
        connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(DATABASE), superuser))
        for table in ("exchange_auditentry", "orders_order", "auth_user"):
            connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(sql.Identifier(table), superuser))
        function = sql.SQL("ALTER FUNCTION exchange_record_audit OWNER TO {}")
        connection.execute(function.format(superuser))
        connection.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(sql.Identifier(RUNTIME)))
    accounts.set_up()

    for owners in [
        "SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        "SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT datdba FROM pg_database WHERE datname = current_database()",
    ]:
        found = owner.execute(f"SELECT DISTINCT pg_get_userbyid(oid) FROM ({owners}) AS owners(oid)").fetchall()  # noqa: S608
        assert found == [(OWNER,)], owners
    is_superuser = owner.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [RUNTIME]).fetchone()
    assert is_superuser == (False,)


def test_one_account_for_both_roles_is_rejected(accounts: Accounts) -> None:
    done = accounts.manage("create_roles", DATABASE_ADMIN_URL=accounts.admin_url)
    assert done.returncode == 1
    assert done.stderr == "CommandError: DATABASE_OWNER_URL must name another account than DATABASE_URL.\n"
