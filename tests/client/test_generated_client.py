"""The Python client that a broker generates from the running exchange: no warnings, correct types, and it trades."""

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from tests import api, trading
from tests.celery_processes import Celery
from tests.live import Server

pytestmark = pytest.mark.django_db(transaction=True)

HERE = Path(__file__).parent
CONFIG, SCRIPT = HERE / "generator.yaml", HERE / "trade.py"
TOOLS = Path(sys.executable).parent
TIMEOUT_SECONDS = 60.0


@pytest.fixture(scope="module")
def workshop(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the generated package."""
    folder = tmp_path_factory.mktemp("client")
    options = ["--meta", "none", "--config", str(CONFIG), "--fail-on-warning"]
    run(folder, "openapi-python-client", "generate", "--url", f"{server.url}/openapi.json", *options)
    return folder


def run(folder: Path, tool: str, *arguments: str) -> None:
    """Run a tool in the folder as a broker would: without our packages on its path. A warning is an error."""
    env = {"PATH": f"{TOOLS}:{os.environ['PATH']}", "PYTHONPATH": str(folder), "PYTHONWARNINGS": "error"}
    done = subprocess.run(  # noqa: S603 - our own tools
        [TOOLS / tool, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_operation_and_component_is_generated(server: Server, workshop: Path) -> None:
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    operations = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    package = workshop / "bourse_client"
    models = re.findall(r'^    "(\w+)",$', (package / "models/__init__.py").read_text(), re.MULTILINE)

    assert {path.stem for path in package.glob("api/*/[!_]*.py")} == operations
    assert set(models) == document["components"]["schemas"].keys()


def test_the_types_of_the_client_and_of_a_script_are_correct(workshop: Path) -> None:
    run(workshop, "mypy", "--strict", "--config-file=", "bourse_client", str(SCRIPT))

    assert re.findall(r"\b(?:Any|dict|cast|type: ignore)\b", SCRIPT.read_text()) == []


def test_the_script_trades_and_receives_events(server: Server, workshop: Path, celery: Celery) -> None:
    celery.webhook_worker().start()

    run(workshop, "python", str(SCRIPT), server.url, str(api.operator().key))

    assert trading.fills() == [(300, Decimal("148.00"))]
    trading.assert_sound()
