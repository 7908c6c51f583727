"""Hundreds of seeded histories, each of which must keep every promise, in seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation import run
from tests.simulation.platter import Content
from tests.simulation.run import play
from tests.simulation.script import make_script

SEEDS, CHUNK = 120, 10
"""The same ones with every push, so that a failure is the change's; each night tries thousands of others."""


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_is_kept_whatever_breaks(first: int) -> None:
    verdicts = [play(seed) for seed in range(first, first + CHUNK)]
    broken = [
        f"python -m tests.simulation --seed {verdict.seed} --trace\n  " + "\n  ".join(verdict.problems)
        for verdict in verdicts
        if verdict.problems
    ]
    assert not broken, "\n".join(broken)


def test_same_seed_gives_the_same_history_again() -> None:
    for seed in range(5):
        first, second = play(seed), play(seed)
        assert first.trace == second.trace
        assert first.trace_hash == second.trace_hash


def test_other_seed_gives_another_history() -> None:
    assert len({play(seed).trace_hash for seed in range(5)}) == 5


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # those that a dead process never came to await
@pytest.mark.parametrize("power", [False, True])
def test_process_that_dies_while_it_clears_the_directory_leaves_that_to_the_next_one(
    power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = replace(make_script(0), threads={}, faults=[])
    monkeypatch.setattr(run, "make_script", lambda seed: idle)
    for steps in range(16):
        life = run._Play(0)
        for name in (f"{1:032x}.lock", f"{1:032x}.spare"):
            life._platter.names[name] = Content()
        life._platter._durable_names.update(life._platter.names)
        life.world.fuse, life._power = steps, power
        life._clear_directory()
        assert any(line.endswith("our process is dead") for line in life.world.lines)
        assert not life.world.problems


@pytest.mark.nightly
def test_seeds_exercise_what_they_are_there_for() -> None:
    unseen = {
        "our process is dead",
        "primary frozen",
        "primary ended a session",
        "(late)",
        "(drain)",
        "(live)",
        "CheckpointUnavailableError",
        "JournalFullError",
        "given up",
        "waiting for a lost session",
        "disk fails to sync",
        "disk rename",
        "No space left on device",
        "breaker closed",
        "RetryScheduled",
        "AttemptAbandoned",
        "operations that an earlier process acknowledged wait",
    }
    for seed in range(240):
        unseen -= {seen for seen in unseen for line in play(seed).trace if seen in line[12:]}
        if not unseen:
            break
    assert not unseen, "no run ever saw these"
