"""The TypeScript client that a broker generates from the running exchange: correct types, and it trades."""

import os
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from tests import api, trading
from tests.live import Server

SOURCE = Path(__file__).parent / "typescript"
MODULES = SOURCE / "node_modules"
TIMEOUT_SECONDS = 60.0

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not shutil.which("node"), reason="node is not installed"),
    pytest.mark.skipif(not (MODULES / ".bin").exists(), reason="`make test` installs the generator if npm exists"),
]


def test_the_script_compiles_and_trades(server: Server, tmp_path: Path) -> None:
    """The compiler also fails unless it finds every mistake in `mistakes.ts`."""
    for source in [*SOURCE.glob("*.ts"), *SOURCE.glob("*.json")]:
        shutil.copy(source, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    options = ["--default-non-nullable=false", "--output", "schema.d.ts"]

    run(tmp_path, "node_modules/.bin/openapi-typescript", f"{server.url}/openapi.json", *options)
    run(tmp_path, "node_modules/.bin/tsc")
    run(tmp_path, "node", "trade.js", server.url, str(api.operator().key))

    assert trading.fills() == [(300, Decimal("148.00"))]
    trading.assert_sound()


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(  # noqa: S603 - our own tools
        command, cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
