"""A reader that goes away and a disk that is full, behind standard output: exit codes stay true."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.backends import config_of, opened_backend, put

FILE = Path("checkpoints.sqlite")
DATABASE = ("--sqlite", str(FILE))
THREADS = 60
COMMANDS = {
    "healthy": (0, ("health", *DATABASE)),
    "not healthy": (1, ("health", "--sqlite", "missing.sqlite")),
    "wrong usage": (2, ("health", "--sqlite", "a", "--database-url", "postgresql://h/d")),
    "doctor": (0, ("doctor", *DATABASE)),
    "a long list": (0, ("threads", "list", "--limit", "1000", *DATABASE)),
    "a short list": (0, ("threads", "list", "--limit", "1", *DATABASE)),
    "rehearsal": (0, ("retention", "run", "--dry-run", *DATABASE)),
    "migration": (0, ("migrate", "--quiet", str(FILE), "new.sqlite")),
}


@pytest.fixture(autouse=True)
def threads() -> None:
    async def fill() -> None:
        async with opened_backend(config_of("sqlite", "", Path())) as primary:
            for number in range(THREADS):
                await primary.apply(put(f"thread {number}", number, values={"text": b"\xa3abc"}))

    asyncio.run(fill())


@contextmanager
def abandoned() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@contextmanager
def full() -> Iterator[int]:
    with open("/dev/full", "wb", buffering=0) as nowhere:
        yield nowhere.fileno()


def run(*arguments: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE) -> tuple[int, str]:
    """The exit code, and what was said on stderr."""
    command = [sys.executable, "-m", "enhanced_checkpointing.cli.entry", *arguments]
    ended = subprocess.run(command, stdout=stdout, stderr=stderr, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr or ""


@pytest.mark.parametrize(("code", "arguments"), COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("form", [(), pytest.param(("--json",), marks=pytest.mark.nightly)], ids=["text", "json"])
def test_command_ends_as_what_it_found_says_when_its_reader_went_away(
    form: tuple[str, ...], code: int, arguments: tuple[str, ...]
) -> None:
    with abandoned() as pipe:
        ended, said = run(*arguments, *form, stdout=pipe)
    assert (ended, "Traceback" in said, "Broken pipe" in said) == (code, False, False), said


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("wrong usage", "migration")])
@pytest.mark.parametrize("form", [pytest.param((), marks=pytest.mark.nightly), ("--json",)], ids=["text", "json"])
def test_full_standard_output_ends_with_2_and_one_sentence(form: tuple[str, ...], name: str) -> None:
    with full() as disk:
        ended, said = run(*COMMANDS[name][1], *form, stdout=disk)
    lines = said.splitlines()
    assert (ended, len(lines), "No space left on device" in said) == (2, 1, True), said


def test_help_is_as_good_as_any_other_command() -> None:
    with abandoned() as pipe:
        assert run("--help", stdout=pipe) == (0, "")
    with full() as disk:
        ended, said = run("--help", stdout=disk)
    assert (ended, said.count("\n"), "No space left on device" in said) == (2, 1, True), said


def test_full_standard_output_hides_no_error_that_is_told_in_json() -> None:
    with full() as disk:
        ended, said = run("health", "--sqlite", "a", "--database-url", "postgresql://h/d", "--json", stdout=disk)
        assert (ended, said.count("\n"), "No space left" in said) == (2, 1, True), said
        ended, said = run("migrate", str(FILE), "new.sqlite", "--json", "--quiet", stdout=disk)
        assert (ended, said.count("\n"), "No space left" in said) == (2, 1, True), said


@pytest.mark.parametrize("some", [(), ("--thread", "thread 1")], ids=["all", "one"])
def test_export_that_is_cut_off_is_not_complete(some: tuple[str, ...]) -> None:
    arguments = ("export", str(FILE), "-", "--quiet", *some)
    assert run(*arguments)[0] == 0
    with abandoned() as pipe:
        assert run(*arguments, stdout=pipe) == (141, "")
    with full() as disk:
        ended, said = run(*arguments, stdout=disk)
    assert (ended, said.count("\n"), "No space left on device" in said) == (2, 1, True), said


def test_command_goes_on_where_nobody_reads_how_far_it_is() -> None:
    with abandoned() as pipe:
        assert run("setup", "--sqlite", "new.sqlite", stderr=pipe)[0] == 0
    with full() as disk:
        assert run("setup", "--sqlite", "another.sqlite", stderr=disk)[0] == 0
    assert run("health", "--sqlite", "new.sqlite")[0] == run("health", "--sqlite", "another.sqlite")[0] == 0


@pytest.mark.nightly
def test_demo_that_nobody_watches_ends_as_what_it_proved_says() -> None:
    short = ("--conversations", "1", "--turns", "2", "--pace", "0.1", "--sqlite")
    with abandoned() as pipe:
        assert run("demo", *short, stdout=pipe)[0] == 0
