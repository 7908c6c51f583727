"""Tables that somebody changes under a running process: a restore in its middle, a migration."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest

from tests.support.checkpointer import eventually, opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread

KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype = 'p' AND conrelid::regclass::text = ANY(%s)
"""


@pytest.mark.parametrize("tables", [["checkpoints"], ["checkpoint_blobs"], ["checkpoint_writes"]])
async def test_tables_whose_primary_keys_are_not_restored_yet_make_no_dead_letters(
    tables: list[str], database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`pg_restore` makes the tables and their rows first, and their keys last."""
    async with switched("postgres", database_url, tmp_path) as primary:
        threads = [Thread(saver_of(primary.manager), name) for name in ("a", "b", "c")]
        for thread in threads:
            await thread.put()
        await primary.off()
        for thread in threads:
            await thread.put()
            await thread.put_writes("task")
        with psycopg.connect(database_url, autocommit=True) as connection:
            keys = connection.execute(KEYS, (tables,)).fetchall()
            for table, name, _ in keys:
                connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}".encode())
            await primary.on()
            await eventually(lambda: "To mend it: The tables must be" in caplog.text)
            await asyncio.sleep(0.5)
            report = primary.manager.health_status
            assert not report["primary_healthy"]
            assert (report["journal"]["pending"], report["journal"]["dead_letters"]) == (6, 0)
            for table, name, definition in keys:
                mended = f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}".encode()
                await asyncio.to_thread(connection.execute, mended)  # a probe may be under way
        await recovered(primary.manager)
        for thread in threads:
            assert await thread.stored_ids() == thread.ids


async def test_statement_that_was_prepared_before_a_table_changed_is_prepared_anew(database_url: str) -> None:
    async with opened(postgres(database_url, pool_max_size=1)) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        for kind in ("varchar", "text"):
            for _ in range(3):
                await thread.timed_get()
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute(f"ALTER TABLE checkpoints ALTER COLUMN parent_checkpoint_id TYPE {kind}".encode())
            await thread.timed_get()
            await thread.put()
        assert manager.components.engine.journaling.journaled == 0
        assert await thread.stored_ids() == thread.ids
