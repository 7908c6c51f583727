"""Every setting that has a variable does something: what is seen with it differs from what is seen with its default.

That each variable arrives in its field is shown by `tests/unit/test_settings.py`.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver

from enhanced_checkpointing import (
    CheckpointerConfigurationError,
    CheckpointUnavailableError,
    EnhancedCheckpointerManager,
    JournalFullError,
    create_memory_checkpointer,
)
from enhanced_checkpointing.config import SettingFields, variable_of
from enhanced_checkpointing.testing import FlakySaver, make_flaky
from tests.support.checkpointer import FAST, eventually, opened, postgres, recovered, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.retention import let_pass, sweeper_of

ROOT = Path(__file__).parents[2]
HERE = "tests/faults/test_settings_do_something.py"
SHOWN_BY = {
    "environment": f"{HERE}::test_environment_chooses_the_primary",
    "enabled": "tests/faults/test_start_without_a_loop.py::test_disabled_manager_hands_out_none_and_starts_nothing",
    "auto_setup": "tests/faults/test_wrong_settings.py"
    "::test_missing_tables_without_auto_setup_end_the_start_and_nothing_is_made",
    "require_primary": "tests/faults/test_start_and_stop.py"
    "::test_start_that_requires_the_primary_raises_while_it_is_down",
    "deadline": f"{HERE}::test_deadline_ends_the_wait_for_a_silent_primary",
    "retries": f"{HERE}::test_retries_are_how_often_a_transient_failure_is_repeated",
    "breaker_failures": f"{HERE}::test_breaker_failures_are_how_many_calls_find_out_that_the_primary_fails",
    "probe_interval": f"{HERE}::test_probe_interval_is_how_often_a_healthy_primary_is_probed",
    "probe_backoff_min": f"{HERE}::test_probe_backoff_min_is_how_soon_an_outage_is_probed",
    "probe_backoff_max": f"{HERE}::test_probe_backoff_max_bounds_the_growing_pauses",
    "on_outage": f"{HERE}::test_on_outage_raise_refuses_what_is_otherwise_journaled",
    "on_unknown_thread": "tests/faults/test_reads_in_an_outage.py"
    "::test_fresh_process_raises_for_a_cold_thread_and_never_answers_none",
    "on_divergence": f"{HERE}::test_on_divergence_quarantine_gives_the_branch_of_the_outage_a_thread_of_its_own",
    "accept_unencrypted": "tests/faults/test_copied_bytes.py"
    "::test_value_without_the_seal_is_refused_unless_it_is_accepted_for_a_time",
    "thread_ownership": "tests/faults/test_ownership.py::test_owners_are_only_recorded_where_that_is_asked_for",
    "journal": f"{HERE}::test_journal_off_refuses_what_is_otherwise_journaled",
    "journal_dir": f"{HERE}::test_journal_dir_is_where_the_files_of_an_outage_are",
    "journal_adopt": f"{HERE}::test_journal_adopt_all_drains_what_was_left_for_another_database",
    "journal_key": f"{HERE}::test_journal_key_signs_what_is_journaled_and_is_asked_for_by_whoever_reads_it",
    "journal_max_bytes": f"{HERE}::test_journal_max_bytes_is_where_the_journal_is_full",
    "standby_max_bytes": f"{HERE}::test_standby_max_bytes_of_zero_keeps_nothing_to_read_in_an_outage",
    "pool_min_size": f"{HERE}::test_pool_min_size_is_how_many_sessions_are_kept_open",
    "pool_max_size": "tests/faults/test_load.py::test_more_calls_than_connections_wait_their_turn_without_failover",
    "postgres_schema": "tests/faults/test_start_and_stop.py::test_two_schemas_of_one_database_are_separate",
    "postgres_prepare_threshold": f"{HERE}::test_postgres_prepare_threshold_off_prepares_nothing",
    "drain_concurrency": f"{HERE}::test_drain_concurrency_is_how_many_threads_are_drained_at_a_time",
    "shutdown_grace": "tests/faults/test_start_and_stop.py"
    "::test_stop_with_a_backlog_is_bounded_and_the_next_start_drains_it",
    "retention": f"{HERE}::test_retention_on_deletes_old_threads_by_itself",
    "retention_active_days": f"{HERE}::test_retention_days_are_how_long_threads_are_kept",
    "retention_completed_days": f"{HERE}::test_retention_days_are_how_long_threads_are_kept",
    "retention_failed_days": f"{HERE}::test_retention_days_are_how_long_threads_are_kept",
    "retention_keep": f"{HERE}::test_retention_keep_is_how_many_checkpoints_stay",
    "retention_interval": f"{HERE}::test_retention_on_deletes_old_threads_by_itself",
    "retention_refresh_on_read": f"{HERE}::test_retention_refresh_on_read_keeps_what_is_read",
    "status_token": "tests/serving/test_endpoints.py"
    "::test_only_who_shows_the_token_or_is_let_in_sees_threads_and_errors",
}
"""For each setting the test that shows it; where that is elsewhere, it fails with the default."""

UNPROBED: dict[str, Any] = {"probe_interval": 60.0, "probe_backoff_min": 60.0, "probe_backoff_max": 60.0}
"""Nothing but the test's own calls reaches the primary."""


@pytest.mark.parametrize("field", SettingFields.model_fields)
def test_every_setting_has_a_test_that_sets_it(field: str) -> None:
    assert field in SHOWN_BY, f"{variable_of(field)} has no test that it does something"
    path, _, name = SHOWN_BY[field].partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    (test,) = [node for node in ast.parse(source).body if isinstance(node, functions) and node.name == name]
    set_by_keyword = any(isinstance(node, ast.keyword) and node.arg == field for node in ast.walk(test))
    set_by_variable = any(
        isinstance(node, ast.Constant) and node.value == variable_of(field) for node in ast.walk(test)
    )
    assert set_by_keyword or set_by_variable


def test_no_test_is_named_for_a_setting_that_is_gone() -> None:
    assert set(SHOWN_BY) <= set(SettingFields.model_fields)


@asynccontextmanager
async def flaky_memory(**fields: Any) -> AsyncIterator[tuple[EnhancedCheckpointerManager, FlakySaver]]:
    """An open manager whose primary can be made to fail; it is healed in the end, so that the stop is short."""
    async with opened(create_memory_checkpointer(**fields)) as manager:
        primary = make_flaky(manager)
        try:
            yield manager, primary
        finally:
            primary.heal()


async def test_environment_chooses_the_primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECKPOINT_ENVIRONMENT", "DATABASE_URL", "POSTGRES_URL", "DEV_USE_SQLITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SQLITE_PATH", str(tmp_path / "checkpoints.sqlite"))
    async with EnhancedCheckpointerManager() as manager:
        assert manager.health_status["primary_checkpointer"]["backend"] == "memory"
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "production")
    async with EnhancedCheckpointerManager() as manager:
        assert manager.health_status["primary_checkpointer"]["backend"] == "sqlite"


async def test_deadline_ends_the_wait_for_a_silent_primary() -> None:
    async def is_settled_soon(**fields: Any) -> bool:
        async with flaky_memory(**UNPROBED, **fields) as (manager, primary):
            primary.hang()
            writing = asyncio.create_task(Thread(saver_of(manager), "thread").put())
            settled, _ = await asyncio.wait({writing}, timeout=0.8)
            primary.heal()
            await writing
            return bool(settled)

    assert not await is_settled_soon()
    assert await is_settled_soon(deadline=0.2)


async def test_retries_are_how_often_a_transient_failure_is_repeated(database_url: str) -> None:
    common: dict[str, Any] = {**UNPROBED, "journal": "off"}
    async with (
        opened(postgres(database_url, **common)) as default,
        opened(postgres(database_url, **common, retries=0)) as without,
    ):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("CREATE SEQUENCE tries")  # it counts those that are rolled back too
            connection.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM nextval('tries'); RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
            )
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            for manager, tries in ((default, 1 + 2), (without, 1 + 2 + 1)):
                with pytest.raises(CheckpointUnavailableError):
                    await Thread(saver_of(manager), "thread").put()
                assert connection.execute("SELECT last_value FROM tries").fetchone() == (tries,)


async def test_breaker_failures_are_how_many_calls_find_out_that_the_primary_fails() -> None:
    async def calls_of_the_primary(**fields: Any) -> int:
        async with flaky_memory(**UNPROBED, journal="off", retries=0, **fields) as (manager, primary):
            primary.fail_with(TimeoutError())
            for _ in range(5):
                with pytest.raises(CheckpointUnavailableError):
                    await Thread(saver_of(manager), "thread").put()
            return primary.calls["aput"]

    assert await calls_of_the_primary() == 3
    assert await calls_of_the_primary(breaker_failures=1) == 1


async def test_probe_interval_is_how_often_a_healthy_primary_is_probed() -> None:
    async with flaky_memory() as (_, default), flaky_memory(probe_interval=0.05) as (_, often):
        await eventually(lambda: often.calls["aput"] >= 3)
        assert default.calls["aput"] == 0


async def test_probe_backoff_min_is_how_soon_an_outage_is_probed() -> None:
    async def seconds_until_noticed(**fields: Any) -> float:
        async with flaky_memory(**fields) as (manager, primary):
            primary.fail_with(ConnectionRefusedError())
            await Thread(saver_of(manager), "thread").put()
            primary.heal()
            healed_at = time.monotonic()
            await recovered(manager)
            return time.monotonic() - healed_at

    assert await seconds_until_noticed() > 0.4
    assert await seconds_until_noticed(probe_backoff_min=0.02) < 0.4


async def test_probe_backoff_max_bounds_the_growing_pauses() -> None:
    async with (
        flaky_memory(probe_backoff_min=0.05) as (growing, default),
        flaky_memory(probe_backoff_min=0.05, probe_backoff_max=0.05) as (steady, often),
    ):
        for manager, primary in ((growing, default), (steady, often)):
            primary.fail_with(ConnectionRefusedError())
            await Thread(saver_of(manager), "thread").put()
        await eventually(lambda: often.calls["aput"] >= 20)
        assert 1 < default.calls["aput"] < 10


async def journaled_in_an_outage(**fields: Any) -> int:
    """How many operations the journal holds after two in an outage, the second of them some 10 000 bytes long."""
    async with flaky_memory(**UNPROBED, deadline=0.3, **fields) as (manager, primary):
        primary.fail_with(ConnectionRefusedError())
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        await thread.put_writes("task", "x" * 10_000)
        pending: int = manager.health_status["journal"]["pending"]
        return pending


async def test_on_outage_raise_refuses_what_is_otherwise_journaled() -> None:
    assert await journaled_in_an_outage() == 2
    with pytest.raises(CheckpointUnavailableError):
        await journaled_in_an_outage(on_outage="raise")


async def test_journal_off_refuses_what_is_otherwise_journaled() -> None:
    assert await journaled_in_an_outage() == 2
    with pytest.raises(CheckpointUnavailableError):
        await journaled_in_an_outage(journal="off")


@pytest.mark.parametrize("fields", [{"on_outage": "raise"}, {"journal": "off"}], ids=str)
async def test_log_of_an_outage_says_what_the_settings_make_of_writes(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await journaled_in_an_outage(breaker_failures=1)
    assert "writes wait in the journal" in caplog.text
    caplog.clear()
    with pytest.raises(CheckpointUnavailableError):
        await journaled_in_an_outage(breaker_failures=1, **fields)
    assert "writes are refused" in caplog.text
    assert "wait in the journal" not in caplog.text


async def test_journal_key_signs_what_is_journaled_and_is_asked_for_by_whoever_reads_it(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"journal": "durable", "journal_dir": tmp_path / "journal", "shutdown_grace": 0.0}
    assert await journaled_in_an_outage(**fields, journal_key="k" * 32) == 2
    with pytest.raises(CheckpointerConfigurationError, match="CHECKPOINT_JOURNAL_KEY is not set"):
        await journaled_in_an_outage(**fields)
    assert await journaled_in_an_outage(**fields, journal_key="k" * 32) > 2


async def test_journal_max_bytes_is_where_the_journal_is_full() -> None:
    assert await journaled_in_an_outage() == 2
    with pytest.raises(JournalFullError):
        await journaled_in_an_outage(journal_max_bytes=4096)


async def test_journal_dir_is_where_the_files_of_an_outage_are(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    async with flaky_memory(**UNPROBED, journal="durable", journal_dir=folder) as (manager, primary):
        primary.fail_with(ConnectionRefusedError())
        await Thread(saver_of(manager), "thread").put()
        assert any(path.suffix == ".journal" for path in folder.iterdir())
    assert list(folder.iterdir()) == []


async def test_journal_dir_is_said_to_have_no_effect_on_a_journal_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with flaky_memory():
        assert caplog.records == []
    folder = tmp_path / "journal"
    assert await journaled_in_an_outage(journal_dir=folder) == 2
    (line,) = [record for record in caplog.records if "CHECKPOINT_JOURNAL_DIR" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert not folder.exists()


async def test_journal_adopt_all_drains_what_was_left_for_another_database(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    fields: dict[str, Any] = {"journal_dir": tmp_path / "journal", "shutdown_grace": 0.0}
    async with opened(sqlite(path, **fields)) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        with sqlite3.connect(path, isolation_level=None) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            await thread.put()
            lock.rollback()
    assert manager.config.journal_adopt == "own"
    async with opened(sqlite(tmp_path / "new.sqlite", **fields)) as manager:
        assert manager.health_status["overall_status"] == "degraded"
        assert manager.health_status["journal"]["foreign"] == [{"home": str(path), "books": 1}]
        assert manager.health_status["journal"]["pending"] == 0
    async with opened(sqlite(tmp_path / "new.sqlite", journal_adopt="all", **fields)) as manager:
        assert await manager.wait_drained(10.0)
        assert manager.health_status["journal"]["foreign"] == []
        assert await saver_of(manager).aget_tuple(thread.config) is not None
    assert list((tmp_path / "journal").iterdir()) == []


async def test_on_divergence_quarantine_gives_the_branch_of_the_outage_a_thread_of_its_own() -> None:
    async def threads_after_a_divergence(**fields: Any) -> list[int]:
        """How many checkpoints each thread has."""
        async with flaky_memory(**FAST, **fields) as (manager, primary):
            ours = Thread(saver_of(manager), "thread")
            await ours.put()
            somebody_else = Thread(primary.inner, "thread")
            somebody_else.ids = list(ours.ids)
            primary.fail_with(ConnectionRefusedError())
            await ours.put()
            await somebody_else.put()
            primary.heal()
            await recovered(manager)
            found = [row.config["configurable"]["thread_id"] async for row in primary.inner.alist(None)]
            return sorted(found.count(thread_id) for thread_id in set(found))

    assert await threads_after_a_divergence() == [1 + 1 + 1]
    assert await threads_after_a_divergence(on_divergence="quarantine") == [1 + 1, 1 + 1]


async def test_standby_max_bytes_of_zero_keeps_nothing_to_read_in_an_outage() -> None:
    async def read_in_an_outage(**fields: Any) -> None:
        async with flaky_memory(**UNPROBED, on_unknown_thread="raise", **fields) as (manager, primary):
            thread = Thread(saver_of(manager), "thread")
            await thread.put()
            primary.fail_with(ConnectionRefusedError())
            await thread.timed_get()

    await read_in_an_outage()
    with pytest.raises(CheckpointUnavailableError):
        await read_in_an_outage(standby_max_bytes=0)


async def test_pool_min_size_is_how_many_sessions_are_kept_open(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:

        def sessions() -> int:
            others = (
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            (count,) = connection.execute(f"SELECT count(*) FROM pg_stat_activity {others}".encode()).fetchone() or (0,)
            return int(count)

        async with opened(postgres(database_url, **UNPROBED)):
            await eventually(lambda: sessions() == 1)
        await eventually(lambda: sessions() == 0)
        async with opened(postgres(database_url, **UNPROBED, pool_min_size=4)):
            await eventually(lambda: sessions() == 4)


async def test_postgres_prepare_threshold_off_prepares_nothing(database_url: str) -> None:
    async with (
        opened(postgres(database_url, **UNPROBED)) as default,
        opened(postgres(database_url, **UNPROBED, postgres_prepare_threshold=None)) as never,
    ):
        with psycopg.connect(database_url, autocommit=True) as connection:
            # A session shows its prepared statements to itself only, so the write itself takes the note.
            connection.execute("CREATE TABLE notes (prepared bigint)")
            connection.execute(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "INSERT INTO notes SELECT count(*) FROM pg_prepared_statements; RETURN NEW; END $$"
            )
            connection.execute("CREATE TRIGGER note BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION note()")
            await Thread(saver_of(never), "never").put()
            assert connection.execute("SELECT prepared FROM notes").fetchall() == [(0,)]
            await Thread(saver_of(default), "default").put()
            assert connection.execute("SELECT max(prepared) > 0 FROM notes").fetchone() == (True,)


class CountingMemory(InMemorySaver):
    """Takes its time to put, and counts how many puts are under way at once."""

    under_way = most_under_way = 0

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0.05)
        self.under_way -= 1
        return await super().aput(config, checkpoint, metadata, new_versions)


async def test_drain_concurrency_is_how_many_threads_are_drained_at_a_time() -> None:
    async def drained_at_a_time(**fields: Any) -> int:
        async with flaky_memory(**FAST, **fields) as (manager, primary):
            primary.inner = counting = CountingMemory(serde=primary.inner.serde)
            primary.fail_with(ConnectionRefusedError())
            for number in range(6):
                await Thread(saver_of(manager), f"thread-{number}").put()
            primary.heal()
            await recovered(manager)
            return counting.most_under_way

    assert await drained_at_a_time() == 4
    assert await drained_at_a_time(drain_concurrency=2) == 2


async def test_retention_on_deletes_old_threads_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def is_deleted_soon(**fields: Any) -> bool:
        async with opened(create_memory_checkpointer(**fields)) as manager:
            await Thread(saver_of(manager), "thread").put()
            let_pass(manager, 8)
            await asyncio.sleep(1.5)
            return not await manager.list_threads()

    caplog.set_level(logging.INFO)
    assert not await is_deleted_soon(retention_interval=1.0)
    assert not await is_deleted_soon(retention="on", retention_interval=10_000.0)
    assert caplog.records == []
    assert await is_deleted_soon(retention="on", retention_interval=1.0)
    assert "1 deleted" in caplog.text


async def test_retention_days_are_how_long_threads_are_kept() -> None:
    async def left_after(days: float, **fields: Any) -> set[str]:
        async with opened(create_memory_checkpointer(**fields)) as manager:
            for name in ("active", "completed", "failed"):
                await Thread(saver_of(manager), name).put()
            await manager.mark_completed("completed")
            await manager.mark_failed("failed")
            let_pass(manager, days)
            await manager.run_retention()
            return {found["thread_id"] for found in await manager.list_threads()}

    assert await left_after(5) == {"active", "completed"}
    assert await left_after(5, retention_active_days=4) == {"completed"}
    assert await left_after(5, retention_completed_days=4) == {"active"}
    assert await left_after(5, retention_failed_days=6) == {"active", "completed", "failed"}


async def test_retention_keep_is_how_many_checkpoints_stay() -> None:
    async def checkpoints_left(**fields: Any) -> int:
        async with opened(create_memory_checkpointer(**fields)) as manager:
            thread = Thread(saver_of(manager), "thread")
            for _ in range(5):
                await thread.put()
            let_pass(manager, 1)
            await manager.run_retention()
            return len(await thread.stored_ids())

    assert await checkpoints_left() == 5
    assert await checkpoints_left(retention_keep=2) == 2


async def test_retention_refresh_on_read_keeps_what_is_read() -> None:
    async def left_after_a_read(**fields: Any) -> int:
        async with opened(create_memory_checkpointer(retention="on", retention_interval=10_000.0, **fields)) as manager:
            thread = Thread(saver_of(manager), "thread")
            await thread.put()
            reads = sweeper_of(manager)._engine.reads
            assert reads is not None
            reads._wall_clock = lambda: time.time() + 5 * 86_400
            await thread.timed_get()
            let_pass(manager, 8)
            await manager.run_retention()
            return len(await manager.list_threads())

    assert await left_after_a_read() == 0
    assert await left_after_a_read(retention_refresh_on_read=True) == 1
