"""The documents say what is so: their code runs, their table is that of the settings, the tests they name exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.promises import TIMES
from enhanced_checkpointing import CheckpointerSettings
from enhanced_checkpointing.config import variable_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`")
PYTHON_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
PROMISES = "DELOMNKH"

ENTER_LIFESPAN = """
if "lifespan" in globals():
    async def start_and_stop() -> None:
        async with app.router.lifespan_context(app):
            assert app.state.manager.health_status["overall_status"] == "healthy"

    asyncio.run(start_and_stop())
"""


def clean_environment() -> dict[str, str]:
    chosen = ("DATABASE_URL", "POSTGRES_URL", "DEV_USE_SQLITE", "SQLITE_PATH")
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in chosen and not name.upper().startswith("CHECKPOINT_")
    }


def settings_table() -> list[str]:
    """The rows that the README must have: every variable, its default, its unit and its meaning."""
    rows = []
    for name, field in CheckpointerSettings.model_fields.items():
        unit = f" {field.json_schema_extra['unit']}" if isinstance(field.json_schema_extra, dict) else ""
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        shown = f"`{default}`{unit}" if default is not None else "not set"
        rows.append(f"| `{variable_of(name)}` | {shown} | {field.description} |")
    return rows


def core_of(example: str) -> str:
    """An example without its docstring."""
    source = (ROOT / "examples" / example).read_text(encoding="utf-8")
    return source.partition('"""\n\n')[2]


def test_table_of_the_readme_lists_exactly_the_settings_and_their_defaults() -> None:
    assert re.findall(r"^\| `[A-Z_]+` \|.*$", README, flags=re.MULTILINE) == settings_table()


def test_table_of_versions_is_what_is_demanded_and_what_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    checks = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    tested = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in checks.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.List)
    }
    rows = README.partition("## Supported versions")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(.+?)`", rows)) <= {*map(plain_requirement, project["dependencies"])}
    assert f"| {' and '.join(tested['SERVERS'])} |".replace("| ", "servers ", 1) in rows
    assert f"| {', '.join(tested['PYTHONS'][:-1])} and {tested['PYTHONS'][-1]} |" in rows
    assert project["requires-python"].removeprefix(">=") + " or newer" in rows


def plain_requirement(requirement: str) -> str:
    return re.sub(r"\[.*?\]", "", requirement)


def test_ten_lines_of_the_readme_are_ten_and_those_of_the_example() -> None:
    assert PYTHON_BLOCKS[0] == core_of("ten_lines.py")
    assert len([line for line in PYTHON_BLOCKS[0].splitlines() if line.strip()]) == 10


def test_lifespan_of_the_readme_is_that_of_the_example() -> None:
    (block,) = [block for block in PYTHON_BLOCKS if "async def lifespan" in block]
    imports, lifespan = block.split("\n\n\n", maxsplit=1)
    example = core_of("fastapi_app.py")
    assert lifespan.strip() in example
    ours = [node for node in ast.parse(imports).body if isinstance(node, ast.ImportFrom)]
    theirs = [node for node in ast.parse(example).body if isinstance(node, ast.ImportFrom)]
    for node in ours:
        names = {alias.name for other in theirs if other.module == node.module for alias in other.names}
        assert {alias.name for alias in node.names} <= names


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_every_python_block_of_the_readme_runs_by_itself(number: int, tmp_path: Path) -> None:
    assert len(PYTHON_BLOCKS) >= 3
    program = "\n".join(["import asyncio", PYTHON_BLOCKS[number], ENTER_LIFESPAN])
    ran = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ran.returncode == 0, ran.stderr


def test_readme_gives_the_two_commands_that_do_everything() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert blocks[0].splitlines() == ['pip install ".[demo]" && checkpointing demo', "pip install nox && nox"]
    assert README.index(blocks[0]) < README.index(PYTHON_BLOCKS[0])


@pytest.mark.parametrize("letter", PROMISES)
def test_every_promise_of_the_readme_names_tests_that_hold_it(letter: str) -> None:
    (row,) = re.findall(rf"^\| \*\*{letter}\*\* .*$", README, flags=re.MULTILINE)
    assert NAMED_TEST.search(row), row


def test_every_row_of_the_guarantees_says_what_holds_it() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\|[^\n]*\| Held by \|\n\|[-| ]+\|\n((?:\|[^\n]*\n)+)", text, flags=re.MULTILINE)
    assert len(tables) == 5
    for row in "".join(tables).splitlines():
        assert NAMED_TEST.search(row) or "not tested in this release" in row, row


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_and_file_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for file, name in NAMED_TEST.findall(text):
        assert (ROOT / file).is_file(), f"{document} names {file}"
        if name:
            assert re.search(rf"^ *(?:async )?def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                f"{document} names {file}::{name}"
            )
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"


def test_every_figure_of_speed_in_the_page_on_performance_is_one_of_the_benchmarks() -> None:
    measured = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    unit = rf"\s(?:{TIMES}|µs)"
    values = re.findall(rf"\| ([\d.]+){unit} \| (?:met|missed) \|", measured)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"^Speed, .*?\n\n", page, flags=re.MULTILINE | re.DOTALL)
    told = re.findall(rf"([\d.]+){unit}", paragraph)
    assert len(told) == 11
    assert set(told) <= {f"{float(value):.1f}" for value in values}
