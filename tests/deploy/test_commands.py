"""Every command that an operator is told to run is one that there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from enhanced_checkpointing.cli.app import app
from tests.deploy.parts import DEPLOY, ROOT

TOLD_IN = [*(ROOT / "docs").glob("*.md"), DEPLOY / "README.md", *(DEPLOY / "kubernetes").glob("s*.yaml")]
COMMANDS = [
    pytest.param(words, id=f"{path.stem}: {words}")
    for path in TOLD_IN
    for words in re.findall(
        r"\bcheckpointing,? ((?:(?:journal|threads|retention) )?[a-z-]{4,}(?: --[a-z-]+)*)", path.read_text()
    )
]


def command_of(words: list[str]) -> Any:
    """The command that these words call; of a type that Typer has from Click, or has by itself."""
    found: Any = typer.main.get_command(app)
    for word in words:
        assert word in found.commands, f"there is no `checkpointing {' '.join(words)}`"
        found = found.commands[word]
    return found


@pytest.mark.parametrize("words", COMMANDS)
def test_command_and_its_options_are_there(words: str) -> None:
    command = command_of([word for word in words.split() if not word.startswith("--")])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words.split() if word.startswith("--")} <= known


def test_commands_are_found_in_each_of_the_places() -> None:
    told = {str(parameter.id).partition(":")[0] for parameter in COMMANDS}
    assert {"operations", "guide", "troubleshooting", "README", "setup-job", "stateful-set"} <= told
    assert len(COMMANDS) > 10
    assert Path(DEPLOY / "kubernetes" / "setup-job.yaml") in TOLD_IN
