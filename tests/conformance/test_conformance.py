"""LangGraph's published conformance suite through the saver: healthy, with the primary dead, and after the drain."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import BASE_CAPABILITIES, EXTENDED_CAPABILITIES
from langgraph.checkpoint.conformance.report import CapabilityReport

from tests.support.checkpointer import Switched, eventually, recovered, saver_of, switched

BACKENDS = ("memory", "sqlite", "postgres")
BASE = {capability.value for capability in BASE_CAPABILITIES}
EXTENDED = {capability.value for capability in EXTENDED_CAPABILITIES}


class AlternatingSaver(BaseCheckpointSaver[str]):
    """Makes every write while the primary is dead, and every read after it came back and was drained."""

    def __init__(self, primary: Switched) -> None:
        super().__init__()
        self._primary = primary
        self._saver = saver_of(primary.manager)
        self._dead = False

    async def _for_writing(self) -> BaseCheckpointSaver[str]:
        if not self._dead:
            await self._primary.off()
            self._dead = True
        return self._saver

    async def _for_reading(self) -> BaseCheckpointSaver[str]:
        if self._dead:
            assert self._primary.manager.health_status["journal"]["pending"] > 0, "nothing was journaled"
            breaker = self._primary.manager.components.breaker  # it would open later, when slow calls are answered
            await eventually(lambda: breaker.is_open)
            await self._primary.on()
            self._dead = False
        await recovered(self._primary.manager)
        return self._saver

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        return await (await self._for_writing()).aput(config, checkpoint, metadata, new_versions)

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        await (await self._for_writing()).aput_writes(config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await (await self._for_writing()).adelete_thread(thread_id)

    async def aget_tuple(self, config: Any) -> Any:
        return await (await self._for_reading()).aget_tuple(config)

    async def alist(
        self, config: Any, *, filter: Any = None, before: Any = None, limit: int | None = None
    ) -> AsyncIterator[Any]:
        async for found in (await self._for_reading()).alist(config, filter=filter, before=before, limit=limit):
            yield found

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await (await self._for_reading()).acopy_thread(source_thread_id, target_thread_id)

    async def adelete_for_runs(self, run_ids: Any) -> None:
        await (await self._for_reading()).adelete_for_runs(run_ids)

    async def aprune(self, thread_ids: Any, *, strategy: str = "keep_latest") -> None:
        await (await self._for_reading()).aprune(thread_ids, strategy=strategy)


async def conformance(name: str, saver: Any, skipped: set[str]) -> CapabilityReport:
    """Run the suite over fresh savers from the async generator function `saver`."""
    registered = checkpointer_test(name=name, skip_capabilities=skipped)(saver)
    return await validate(registered)


async def conformance_at_once(name: str, saver: Any) -> CapabilityReport:
    """The same with all capabilities at once, each on a saver with a primary of its own."""
    registered = checkpointer_test(name=name)(saver)
    each = await asyncio.gather(*(validate(registered, capabilities={capability}) for capability in BASE | EXTENDED))
    found = {capability: result for report in each for capability, result in report.results.items() if result.detected}
    return CapabilityReport(checkpointer_name=name, results=found)


def assert_passed(report: CapabilityReport, capabilities: set[str]) -> None:
    failures = {name: result.failures for name, result in report.results.items() if result.failures}
    assert not failures
    passed = {name for name, result in report.results.items() if result.passed and result.tests_passed}
    assert passed == capabilities


@pytest.mark.parametrize("backend", BACKENDS)
async def test_suite_passes_while_the_primary_is_healthy(backend: str, database_url: str, tmp_path: Path) -> None:
    async def saver() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        async with switched(backend, database_url, tmp_path / "primary.sqlite") as primary:
            yield saver_of(primary.manager)
            assert primary.manager.health_status["overall_status"] == "healthy"

    assert_passed(await conformance(backend, saver, set()), BASE | EXTENDED)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_suite_passes_while_the_primary_is_dead_from_the_first_call(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    async def saver() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        path = tmp_path / "primary.sqlite"
        async with switched(backend, database_url, path, on_unknown_thread="start_fresh") as primary:
            await primary.off()
            breaker = primary.manager.components.breaker
            await eventually(lambda: breaker.is_open)
            yield saver_of(primary.manager)
            assert not primary.manager.health_status["primary_healthy"]
            await primary.on()

    # Maintenance needs the primary, and raises in an outage.
    assert_passed(await conformance(backend, saver, EXTENDED), BASE)


@pytest.mark.parametrize("backend", BACKENDS)
async def test_suite_passes_after_the_drain_of_all_that_was_written_in_an_outage(
    backend: str, database_url: str, tmp_path: Path
) -> None:
    """Dozens of outages, each of which a locked file has found out in most of a second: of many files at once."""

    async def saver() -> AsyncGenerator[BaseCheckpointSaver[str], None]:
        # A directory each: who deletes by run changes what is known of all threads of a directory.
        name = str(uuid.uuid4())
        journal: dict[str, Any] = {} if backend == "memory" else {"journal_dir": tmp_path / name}
        async with switched(backend, database_url, tmp_path / f"{name}.sqlite", **journal) as primary:
            yield AlternatingSaver(primary)
            await primary.on()

    run = conformance(backend, saver, set()) if backend == "postgres" else conformance_at_once(backend, saver)
    assert_passed(await run, BASE | EXTENDED)
