"""The mutants: patches, each with the rule it breaks and the test that catches it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """A patch with the rule it breaks and the test that must fail with it (`path::name`)."""

    patch: Path
    rule: str
    test: str

    @classmethod
    def read(cls, patch: Path) -> "Mutant":
        header = dict(re.findall(r"^# (breaks|caught by): (.+)$", patch.read_text(), re.MULTILINE))
        return cls(patch, header["breaks"], header["caught by"])

    @property
    def changes_migrations(self) -> bool:
        """True if the patch has an effect only in a new database, created by the changed migrations."""
        return "/migrations/" in self.patch.read_text()


def mutants() -> list[Mutant]:
    return [Mutant.read(patch) for patch in sorted(FOLDER.glob("*.patch"))]
