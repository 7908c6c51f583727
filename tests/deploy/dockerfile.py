"""The Dockerfile as a list of instructions."""

from __future__ import annotations

import json
import re

from tests.deploy.parts import DEPLOY

FILE = DEPLOY / "Dockerfile"


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, value) for name, _, value in (line.partition(" ") for line in joined.splitlines() if line)]


INSTRUCTIONS = _instructions()


def instructions(name: str) -> list[str]:
    """What follows each instruction of this name."""
    return [value for found, value in INSTRUCTIONS if found == name]


def last(name: str) -> str:
    """What follows the last instruction of this name."""
    return instructions(name)[-1]


def command() -> list[str]:
    """The program that a container runs."""
    found: list[str] = json.loads(last("CMD"))
    return found


def health_command() -> list[str]:
    """The program that asks a container whether it is alive."""
    found: list[str] = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return found
