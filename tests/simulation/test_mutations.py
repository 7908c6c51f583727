"""Tests of the tests: each planted mistake must be found, by few seeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple

from enhanced_checkpointing.backends.base import Heads
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.journal.api import JournalEntry, JournalRecord
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.journal.log_file import LogFile, ProcessLog
from enhanced_checkpointing.operations import Operation
from enhanced_checkpointing.recovery import orphans
from enhanced_checkpointing.recovery.divergence import DrainCalls
from enhanced_checkpointing.resilience.breaker import Breaker, Ticket
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.standby.cache import Standby
from tests.simulation.run import play

MOST_SEEDS = 100


def assert_caught(*letters: str) -> None:
    """See that one of the first seeds is broken, and that it says which promise: one of these beginnings."""
    for seed in range(MOST_SEEDS):
        problems = play(seed).problems
        if any(letter in problem for problem in problems for letter in letters):
            return
    pytest.fail(f"{MOST_SEEDS} seeds did not find it")


def test_reversed_drain_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    read = DurableJournal.read

    async def reversed_read(self: DurableJournal, entries: Sequence[JournalEntry]) -> Sequence[JournalRecord]:
        records = await read(self, entries)
        return [
            replace(record, operation=other.operation) for record, other in zip(records, reversed(records), strict=True)
        ]

    monkeypatch.setattr(DurableJournal, "read", reversed_read)
    assert_caught("O: ")


def test_acknowledging_without_a_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def store(self: ProcessLog, file: LogFile, data: bytes) -> None:
        assert file.handle is not None
        self._disk.write(file.handle, file.end, data)

    monkeypatch.setattr(ProcessLog, "_store", store)
    assert_caught("M, N: ", "D, E: ")


def test_none_for_a_thread_that_is_not_known_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    get_tuple = Standby.get_tuple

    def careless_get_tuple(self: Standby, config: RunnableConfig) -> CheckpointTuple | None:
        try:
            return get_tuple(self, config)
        except CheckpointUnavailableError:
            return None

    monkeypatch.setattr(Standby, "get_tuple", careless_get_tuple)
    assert_caught("N: ")


def test_record_that_the_drain_skips_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    apply_upon, count = DrainCalls.apply_upon, 0

    async def careless(self: DrainCalls, heads: Heads, operations: Sequence[Operation]) -> bool:
        nonlocal count
        count += 1
        kept = operations[:-1] if count % 3 == 0 else operations
        return await apply_upon(self, heads, kept) if kept else True

    monkeypatch.setattr(DrainCalls, "apply_upon", careless)
    assert_caught("D, E: ")


def test_record_that_is_applied_again_after_a_live_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forget_only(self: DurableJournal, entries: Sequence[JournalEntry]) -> None:
        self._forget(entries, 0)  # the marks never reach the disk

    monkeypatch.setattr(DurableJournal, "mark_applied", forget_only)
    assert_caught("O: ")


def test_breaker_that_a_live_call_closes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    succeeded = Breaker.succeeded

    def closing_succeeded(self: Breaker, ticket: Ticket, seconds: float) -> None:
        succeeded(self, ticket, seconds)
        self.close()

    monkeypatch.setattr(Breaker, "succeeded", closing_succeeded)
    assert_caught("the breaker was closed by somebody else")


def test_drain_without_a_fence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Guard.once

    async def unfenced(self: Guard, operation: str, run: Callable[[], Awaitable[Any]], **options: Any) -> Any:
        return True if operation == "fence" else await once(self, operation, run, **options)

    monkeypatch.setattr(Guard, "once", unfenced)
    assert_caught("(late, ")


def test_standby_that_is_not_warmed_from_the_journal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def warm_nothing(journal: object, standby: object) -> None:
        """Leave the standby cold."""

    monkeypatch.setattr(orphans, "warm_from", warm_nothing)
    assert_caught("was not answered, although the journal holds")


def test_write_that_goes_past_its_thread_s_journal_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "enhanced_checkpointing.saver.write_path.route_of",
        lambda *, breaker_open, journal_holds: _route(breaker_open=breaker_open),
    )
    assert_caught("O: a live call")


def _route(*, breaker_open: bool) -> Any:
    from enhanced_checkpointing.saver.routes import Route

    return Route.JOURNAL if breaker_open else Route.PRIMARY
