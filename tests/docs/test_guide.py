"""The guide: every command in it runs, and prints what stands below it."""

from __future__ import annotations

import shutil

import pytest

from docs.building import guide
from docs.building.writing import ROOT
from tests.support.postgres import postgres_binaries, require_or_skip

PAGE = guide.PAGE.read_text(encoding="utf-8")


@pytest.mark.timeout(400)
def test_commands_of_the_guide_print_what_stands_below_them() -> None:
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            require_or_skip(f"no {program}: `apt-get install {program}`")
    now = guide.followed(PAGE, postgres_binaries())
    assert guide.comparable(now) == guide.comparable(PAGE), (
        "run `python -m docs.building.guide --write`, and look at it"
    )


def test_guide_has_every_step_from_the_first_lines_to_a_stop() -> None:
    commands = [command for block in guide.BLOCK.finditer(PAGE) for command in guide.commands_of(block["body"])]
    told = " ; ".join(commands)
    for step in (
        "ten_lines.py",
        "setup",
        "doctor",
        "uvicorn",
        "readyz",
        "journal status",
        "threads show",
        "retention run",
        "kill",
    ):
        assert step in told
    assert [block["body"].split()[1] for block in guide.BLOCK.finditer(PAGE) if block["body"].startswith("docker")] == [
        *("run", "stop", "start"),
    ]


def test_first_lines_of_the_guide_are_those_of_the_example() -> None:
    (block,) = [block["body"] for block in guide.BLOCK.finditer(PAGE) if block["title"] == "ten_lines.py"]
    assert (ROOT / "examples" / "ten_lines.py").read_text(encoding="utf-8").endswith(block)


def test_what_differs_from_run_to_run_is_not_compared_and_all_else_is() -> None:
    one = "10 operations wait for the primary, the oldest for 1 s (durable, 15 KiB on it).\nprocess 2891  3 s ago"
    other = "10 operations wait for the primary, the oldest for 2.5 s (durable,\n16 KiB on it). process 17   4 s ago"
    assert guide.comparable(one) == guide.comparable(other)
    assert guide.comparable(one) != guide.comparable(other.replace("10 operations", "9 operations"))
    assert guide.comparable("step 10, 2026-11-21 17:16:03 UTC") == guide.comparable("step 10, 2027-01-02 00:00:00 UTC")
    assert guide.comparable("step 10") != guide.comparable("step 11")


def test_commands_are_what_stands_behind_the_prompt() -> None:
    assert guide.commands_of("$ one --two\nprinted\n$ three\n") == ["one --two", "three"]
