"""Commands of `checkpointing` as scripts see them: exit code, stdout, stderr. In this process, as that is fast."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from typer.testing import CliRunner

from enhanced_checkpointing.cli.app import app
from enhanced_checkpointing.config import variable_of
from enhanced_checkpointing.settings import CheckpointerSettings

for name in (
    "doctor.command",
    "doctor.postgres",
    "health",
    "drain",
    "journal",
    "setup",
):
    import_module(f"enhanced_checkpointing.cli.{name}")  # before a test gives up the rights to read them

WIDTH = 80

SECRET = "tr0ub4dor"
"""Stands in every password of these tests, as it is and encoded."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """The one JSON object of a command that was asked for it."""
        found: dict[str, Any] = json.loads(self.out)
        return found

    def finding(self, name: str) -> dict[str, Any]:
        """The one finding of the doctor with this name."""
        named: list[dict[str, Any]] = [each for each in self.report["findings"] if each["name"] == name]
        assert len(named) == 1, (
            name,
            [(each["name"], each["status"], each["what"]) for each in self.report["findings"]],
        )
        return named[0]

    @property
    def words(self) -> str:
        """What was printed for people, without the line breaks of the terminal."""
        return " ".join(self.out.split())


def command(*arguments: object, **environment: str | None) -> Ended:
    """Run a command with these variables and no other ones of ours."""
    variables: dict[str, str | None] = {name: None for name in os.environ if _is_ours(name)}
    variables |= {"COLUMNS": str(WIDTH), "TERM": "dumb", **environment}
    began = time.monotonic()
    ended = CliRunner().invoke(app, [str(argument) for argument in arguments], env=variables)
    seconds = time.monotonic() - began
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return Ended(ended.exit_code, ended.stdout, ended.stderr, seconds)


def _is_ours(name: str) -> bool:
    well_known = {variable_of(field) for field in CheckpointerSettings.model_fields}
    return name.upper().startswith(("CHECKPOINT_", "OTEL_", "PG")) or name.upper() in well_known


def doctor(*arguments: object, **environment: str | None) -> Ended:
    """What the doctor finds, as JSON."""
    return command("doctor", "--json", *arguments, **environment)


def assert_named(ended: Ended, name: str, *, what: str, fix: str, status: str = "failed") -> None:
    """The doctor found this, said what to do about it, ended accordingly, and let no secret out."""
    finding = ended.finding(name)
    assert finding["status"] == status, finding
    assert what in finding["what"], finding
    assert fix in finding["fix"], finding
    assert finding["means"]
    assert ended.code == (1 if ended.report["failed"] else 0)
    assert ended.code == 1 or status != "failed"
    assert SECRET not in ended.out + ended.err
