"""Errors that the database reports of single calls: FAULTS rows 19 and 21."""

from __future__ import annotations

import asyncio
import random
import string
import time
from pathlib import Path

import psycopg
import pytest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.errors import CheckpointUnavailableError
from tests.support.checkpointer import opened, postgres, recovered, saver_of, switched
from tests.support.checkpoints import Thread
from tests.support.postgres import fresh_database


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
            assert manager.components.engine.journaling.journaled == 0
            locker.execute("LOCK TABLE checkpoints IN EXCLUSIVE MODE")
            for _ in range(5):
                assert await thread.timed_put() <= 1.0 + 0.1 + 0.1
            assert manager.components.engine.journaling.journaled == 5
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
        assert manager.components.engine.journaling.journaled == 0
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


@pytest.mark.parametrize("deadlines", [5, 14])
async def test_maintenance_may_take_twelve_deadlines_and_no_more(deadlines: int, database_url: str) -> None:
    fields = {"deadline": 0.2, "probe_interval": 60.0}
    async with opened(postgres(database_url, **fields)) as manager:
        thread = Thread(saver_of(manager), "pruned")
        for _ in range(3):
            await thread.put()
        with psycopg.connect(database_url) as connection:
            connection.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
            started_at = time.monotonic()
            pruned = asyncio.ensure_future(saver_of(manager).aprune(["pruned"]))
            await asyncio.wait({pruned}, timeout=0.2 * deadlines)
            connection.rollback()
        if deadlines < 12:
            await pruned
            assert await thread.stored_ids() == thread.ids[-1:]
        else:
            assert time.monotonic() - started_at < 0.2 * 12 + 0.4
            with pytest.raises(CheckpointUnavailableError):
                await pruned
        assert manager.health_status["primary_healthy"]


async def test_value_that_the_database_refuses_is_raised_live_and_moves_nothing(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "refused")
        await thread.put()
        for _ in range(5):
            with pytest.raises(psycopg.errors.UntranslatableCharacter) as raised:
                await thread.put(nested={"text": "a\x00b"})
            assert raised.value.__cause__ is not raised.value
        assert manager.health_status["overall_status"] == "healthy"
        assert manager.components.engine.journaling.journaled == 0
        await thread.put()
        assert await thread.stored_ids() == thread.ids


async def test_value_that_the_database_refuses_at_replay_freezes_its_thread_and_no_other(
    database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        manager = primary.manager
        bad, good = Thread(saver_of(manager), "bad"), Thread(saver_of(manager), "good")
        await bad.put()
        await good.put()
        await primary.off()
        await bad.put()
        await bad.put(forbidden=True)
        await bad.put()
        await good.put()
        with psycopg.connect(database_url) as connection:
            connection.execute("ALTER TABLE checkpoints ADD CHECK (metadata->>'forbidden' IS NULL)")
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
        heads = {thread["thread_id"]: thread["checkpoint_id"] for thread in await manager.list_threads()}
        assert heads == {"bad": bad.ids[1], "good": good.ids[-1]}, "as far as the primary has them"
        await bad.put()  # goes on, in the journal
        found = await saver_of(manager).aget_tuple(bad.config)
        assert found is not None
        assert found.checkpoint["id"] == bad.ids[-1]
        await good.put()
        assert await good.stored_ids() == good.ids


REFUSE_BY_METADATA = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.metadata ->> 'sql' IS NOT NULL THEN EXECUTE NEW.metadata ->> 'sql'; END IF;
    IF NEW.metadata ->> 'code' IS NOT NULL THEN RAISE EXCEPTION 'no' USING ERRCODE = NEW.metadata ->> 'code'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION refuse();
"""
UNTRANSLATABLE = "SELECT U&'\\00e9'"
"""In a database in SQL_ASCII the server answers this as one up to version 15 answers `"\\u00e9"` in JSON: 0A000."""


@pytest.mark.parametrize(("encoding", "odd"), [("SQL_ASCII", "é"), ("LATIN1", "€")])
async def test_text_that_the_encoding_of_the_database_lacks_is_refused_to_its_caller_and_delays_nobody(
    encoding: str, odd: str, database_url: str, tmp_path: Path
) -> None:
    with fresh_database(database_url, encoding) as url:
        async with switched("postgres", url, tmp_path) as primary:
            manager = primary.manager
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(REFUSE_BY_METADATA)
            bad, good, gone = (Thread(saver_of(manager), name) for name in ("bad", "good", "gone"))
            for thread in (bad, good, gone):
                await thread.put()
            refused: list[dict[str, str]] = [{"text": odd}]
            refused += [{"sql": UNTRANSLATABLE}] if encoding == "SQL_ASCII" else []
            for metadata in refused:
                with pytest.raises(psycopg.Error) as error:
                    await bad.put(**metadata)
                assert error.value.sqlstate == ("0A000" if "sql" in metadata else "22P05")
            assert manager.components.engine.journaling.journaled == 0
            await bad.put()
            await primary.off()
            for metadata in refused:  # only the server knows its encoding
                await bad.put(**metadata)
            await good.put()
            assert await manager.delete_thread("gone")
            await primary.on()
            assert not await manager.wait_drained(5)
            journal = manager.health_status["journal"]
            assert (journal["dead_letters"], journal["frozen_threads"]) == (1, 1)
            assert await good.stored_ids() == good.ids
            assert await manager.get_thread("gone") is None
            assert await manager.delete_thread("good")


@pytest.mark.parametrize("code", ["0A000", "42883", "42804", "55000"])
async def test_refusal_that_is_not_that_of_all_writes_makes_a_dead_letter_and_the_rest_is_drained(
    code: str, database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        manager = primary.manager
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(REFUSE_BY_METADATA)
        bad, good = Thread(saver_of(manager), "bad"), Thread(saver_of(manager), "good")
        await bad.put(code=code)  # as for a fault of the tables, it is in the journal
        await good.put()
        assert not await manager.wait_drained(5)
        journal = manager.health_status["journal"]
        assert (journal["dead_letters"], journal["frozen_threads"], journal["pending"]) == (1, 1, 0)
        assert manager.dead_letters[0]["error"] == f"no (SQLSTATE {code})"
        assert await good.stored_ids() == good.ids


async def test_row_that_a_policy_forbids_is_refused_to_its_caller(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                "ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
                "CREATE POLICY mine ON checkpoints USING (thread_id <> 'yours');"
                "CREATE ROLE tenant; GRANT ALL ON ALL TABLES IN SCHEMA public TO tenant; GRANT tenant TO CURRENT_USER"
            )
        try:
            mine, yours = (Thread(saver_of(manager), name) for name in ("mine", "yours"))
            await mine.put()
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {connection.info.dbname} SET role = tenant".encode())
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                )
            await recovered(manager)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="policy"):
                await yours.put()
            await mine.put()
            assert await mine.stored_ids() == mine.ids
        finally:
            with psycopg.connect(database_url, autocommit=True, options="-c role=none") as connection:
                connection.execute(f"ALTER DATABASE {connection.info.dbname} RESET role".encode())
                connection.execute("DROP OWNED BY tenant; DROP ROLE tenant")


async def test_argument_of_a_wrong_type_is_its_callers_fault_and_no_outage(database_url: str) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "thread")
        await thread.put()
        for channel in (5, b"count"):
            with pytest.raises(psycopg.Error):
                await saver_of(manager).aget_delta_channel_history(config=thread.config, channels=[channel])  # type: ignore[list-item]
        assert manager.health_status["overall_status"] == "healthy"


REFUSED: dict[str, dict[str, object]] = {
    "NUL in metadata": {"nested": {"text": "a\x00b"}},
    "NUL in a key of metadata": {"a\x00b": 1},
    "NaN": {"score": float("nan")},
    "Infinity": {"nested": [float("-inf")]},
    "half of a character": {"text": "a\ud800b"},
    "no JSON": {"when": object()},
}
TAKEN: dict[str, dict[str, object]] = {
    "backslash and u0000": {"text": "a\\u0000b \\\\u0000"},
    "another alphabet": {"text": "ÄÖ 漢字 😀"},
    "two halves of a character": {"text": "\ud83d\ude00"},
    "control characters": {"text": "\x01\x1f\x7f"},
    "large numbers": {"number": 2**63 - 1},
}


@pytest.mark.parametrize("what", [*REFUSED, *TAKEN])
async def test_what_the_database_refuses_is_refused_in_an_outage_too_and_nothing_else_is(
    what: str, private_postgres: LocalPostgres
) -> None:
    refused = what in REFUSED
    metadata = REFUSED[what] if refused else TAKEN[what]
    async with opened(postgres(private_postgres.url())) as manager:
        thread = Thread(saver_of(manager), "thread")
        raised: list[type[BaseException] | None] = []
        await thread.put()
        for healthy in (True, False):
            if not healthy:
                await asyncio.to_thread(private_postgres.kill)
                await thread.put()
            try:
                await thread.put(**metadata)
            except Exception as error:  # noqa: BLE001  # of which type it is, is what this is about
                raised.append(type(error))
            else:
                raised.append(None)
        assert (raised[0] is not None) == refused
        assert raised[0] is raised[1]
        await asyncio.to_thread(private_postgres.start)
        await recovered(manager)
        assert await thread.stored_ids() == thread.ids


@pytest.mark.parametrize(
    ("thread_id", "refused"),
    [
        ("".join(random.Random(1).choices(string.ascii_letters + string.digits, k=4000)), True),
        ("L" * 4000, False),
        ("x" * 600 + "".join(f"{number:04x}" for number in random.Random(2).sample(range(65536), 500)), False),
        ("漢字" * 100, False),
    ],
    ids=["long", "long, but always the same", "not too long", "another alphabet"],
)
async def test_thread_id_that_the_database_refuses_is_refused_in_an_outage_too_and_no_other_is(
    thread_id: str, refused: bool, database_url: str, tmp_path: Path
) -> None:
    async with switched("postgres", database_url, tmp_path) as primary:
        raised: list[type[BaseException] | None] = []
        for name in (thread_id, f"{thread_id}2"):
            primary.manager.create_thread_config(name, new=True)
            try:
                await Thread(saver_of(primary.manager), name).put()
            except Exception as error:  # noqa: BLE001  # of which type it is, is what this is about
                raised.append(type(error))
            else:
                raised.append(None)
            await primary.off()
        assert (raised[0] is not None) == refused
        assert raised[0] is raised[1]
        await primary.on()
        await recovered(primary.manager)


async def test_write_that_the_warm_copy_cannot_hold_is_a_write_all_the_same(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(postgres(database_url)) as manager:
        thread = Thread(saver_of(manager), "big")
        levels: list[object] = []
        for _ in range(700):
            levels = [levels]
        await thread.put(trace=levels)  # JSON takes it, MessagePack does not
        assert await thread.stored_ids() == thread.ids
        assert "cannot be kept warm" in caplog.text
