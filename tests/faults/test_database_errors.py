"""Errors that the database reports of single calls: FAULTS rows 19 and 21."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.support.checkpointer import opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread


async def test_locked_table_is_waited_for_and_then_journaled_in_order(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "locked")
        await thread.put()
        with psycopg.connect(database_url) as locker:
            locker.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
            waiting = asyncio.create_task(thread.timed_put())
            await asyncio.sleep(0.3)
            locker.rollback()
            assert await waiting < 0.9
            assert manager._opened.engine.journaled == 0
            locker.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
            for _ in range(5):
                assert await thread.timed_put() <= 1.0 + 0.1 + 0.1
            assert manager._opened.engine.journaled == 5
            locker.rollback()
        await recovered(manager)
        assert await thread.stored_ids() == thread.ids


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03"])
async def test_transient_error_of_the_database_is_retried_without_failover(code: str, database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "conflict")
        await thread.put()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("CREATE SEQUENCE tries")
            connection.execute(
                "CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF nextval('tries') = 1 THEN RAISE EXCEPTION 'conflict' USING ERRCODE = '{code}'; END IF; "
                "RETURN NEW; END $$".encode()
            )
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse_once()"
            )
        await thread.put()
        assert manager._opened.engine.journaled == 0
        assert await thread.stored_ids() == thread.ids


async def test_concurrent_prunes_of_one_thread_end_well(database_url: str) -> None:
    async with opened(postgres(database_url, deadline=5.0)) as manager:
        saver = saver_of(manager)
        thread = Thread(saver, "pruned")
        for _ in range(20):
            await thread.put()
        ended = await asyncio.gather(*(saver.aprune(["pruned"]) for _ in range(5)), return_exceptions=True)
        assert any(result is None for result in ended)
        assert await thread.stored_ids() == thread.ids[-1:]
        assert manager.health_status["primary_healthy"]
        await thread.put()
        assert await thread.stored_ids() == thread.ids[-2:]


async def test_value_that_the_database_refuses_is_raised_live_and_moves_nothing(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "refused")
        await thread.put()
        for _ in range(5):
            with pytest.raises(psycopg.errors.UntranslatableCharacter) as raised:
                await thread.put(nested={"text": "a\x00b"})
            assert raised.value.__cause__ is not raised.value
        assert manager.health_status["overall_status"] == "healthy"
        assert manager._opened.engine.journaled == 0
        await thread.put()
        assert await thread.stored_ids() == thread.ids


async def test_value_that_the_database_refuses_at_replay_freezes_its_thread_and_no_other(
    database_url: str, tmp_path: object
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:  # type: ignore[arg-type]  # unused here
        manager = primary.manager
        bad, good = Thread(saver_of(manager), "bad"), Thread(saver_of(manager), "good")
        await bad.put()
        await good.put()
        await primary.off()
        await bad.put()
        await bad.put(nested={"text": "a\x00b"})
        await bad.put()
        await good.put()
        await primary.on()
        assert not await manager.wait_drained(5)
        journal = manager.health_status["journal"]
        assert (journal["dead_letters"], journal["frozen_threads"], journal["pending"]) == (1, 1, 1)
        assert manager.health_status["overall_status"] == "degraded"
        assert await good.stored_ids() == good.ids
        with psycopg.connect(database_url) as connection:
            stored = connection.execute(
                "SELECT checkpoint_id FROM checkpoints WHERE thread_id = 'bad' ORDER BY checkpoint_id"
            ).fetchall()
        assert [checkpoint_id for (checkpoint_id,) in stored] == bad.ids[:2]
        await bad.put()  # goes on, in the journal
        found = await saver_of(manager).aget_tuple(bad.config)
        assert found is not None
        assert found.checkpoint["id"] == bad.ids[-1]
        await good.put()
        assert await good.stored_ids() == good.ids


async def test_write_that_the_warm_copy_cannot_hold_is_a_write_all_the_same(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "big")
        await thread.put(trace_id=2**80)  # JSON takes it, msgpack does not
        assert await thread.stored_ids() == thread.ids
        assert "cannot be kept warm" in caplog.text
