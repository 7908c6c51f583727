"""A start that waiting does not mend: the error names the fix and never the password. A real PostgreSQL refuses."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest

from enhanced_checkpointing import CheckpointerConfigurationError, EnhancedCheckpointerManager
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.checkpointer import opened, postgres, saver_of
from tests.support.graphs import GRAPHS, run_case
from tests.support.leaks import LeakWatch
from tests.support.postgres import postgres_binaries

PASSWORD = "tr0ub4dor&3/@'%"
WRONG_PASSWORD = "wr0ng:p@ss/word"


@pytest.fixture(scope="module")
def guarded_postgres() -> Iterator[LocalPostgres]:
    """A server that asks for a password (scram-sha-256)."""
    with LocalPostgres(postgres_binaries(), password=PASSWORD) as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'visitor'")
            connection.execute("CREATE ROLE sleeper NOLOGIN PASSWORD 'sleeper'")
            connection.execute("CREATE DATABASE closed")
            connection.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        yield server


WRONG = {
    "wrong password": ("postgresql://postgres:{wrong}@127.0.0.1:{port}/postgres", "password"),
    "no password": ("postgresql://postgres@127.0.0.1:{port}/postgres", "password"),
    "missing role": ("postgresql://nobody_here:{wrong}@127.0.0.1:{port}/postgres", "user"),
    "role without login": ("postgresql://sleeper:sleeper@127.0.0.1:{port}/postgres", "user"),
    "missing database": ("postgresql://postgres:{right}@127.0.0.1:{port}/not_there", "database"),
    "database closed to the user": ("postgresql://visitor:visitor@127.0.0.1:{port}/closed", "database"),
    "nonsense as sslmode": ("postgresql://postgres:{right}@127.0.0.1:{port}/postgres?sslmode=maybe", "sslmode"),
    "server without TLS": ("postgresql://postgres:{right}@127.0.0.1:{port}/postgres?sslmode=require", "sslmode"),
    "missing root certificate": (
        "postgresql://postgres:{right}@127.0.0.1:{port}/postgres?sslmode=verify-full&sslrootcert=/not/there",
        "sslmode",
    ),
}


@pytest.mark.parametrize("require_primary", [False, True])
@pytest.mark.parametrize(("url", "named"), WRONG.values(), ids=WRONG)
async def test_wrong_connection_setting_ends_the_start_and_names_the_fix(
    url: str, named: str, require_primary: bool, guarded_postgres: LocalPostgres, no_leaks: LeakWatch
) -> None:
    url = url.format(right=quote(PASSWORD, safe=""), wrong=quote(WRONG_PASSWORD, safe=""), port=guarded_postgres.port)
    manager = EnhancedCheckpointerManager(postgres(url, require_primary=require_primary))
    with pytest.raises(CheckpointerConfigurationError, match="DATABASE_URL") as refused:
        await manager.initialize()
    await manager.cleanup()
    _, _, fix = str(refused.value).rpartition("Check ")
    assert named in fix
    shown = "".join(traceback.format_exception(refused.value))
    for secret in (PASSWORD, WRONG_PASSWORD, "visitor:visitor", "sleeper:sleeper"):
        assert secret not in shown
        assert quote(secret, safe="") not in shown


async def test_password_with_special_characters_works_when_it_is_encoded(guarded_postgres: LocalPostgres) -> None:
    async with opened(postgres(guarded_postgres.url(), require_primary=True)) as manager:
        await run_case(GRAPHS["counting_chain"], saver_of(manager), "thread")


@pytest.mark.parametrize("postgres_schema", [None, "agents"])
async def test_missing_tables_without_auto_setup_end_the_start_and_nothing_is_made(
    postgres_schema: str | None, database_url: str, no_leaks: LeakWatch
) -> None:
    config = postgres(database_url, auto_setup=False, postgres_schema=postgres_schema)
    with pytest.raises(CheckpointerConfigurationError, match="start once with CHECKPOINT_AUTO_SETUP=true"):
        await EnhancedCheckpointerManager(config).initialize()
    with psycopg.connect(database_url) as connection:
        found = connection.execute("SELECT to_regclass('checkpoints'), to_regnamespace('agents')").fetchone()
    assert found == (None, None)


async def test_tables_that_are_there_need_no_auto_setup(database_url: str) -> None:
    async with opened(postgres(database_url)):
        pass
    async with opened(postgres(database_url, auto_setup=False, require_primary=True)) as manager:
        await run_case(GRAPHS["counting_chain"], saver_of(manager), "thread")


async def test_tables_of_an_older_version_end_the_start_without_auto_setup(database_url: str) -> None:
    async with opened(postgres(database_url)):
        pass
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM checkpoint_migrations WHERE v = (SELECT max(v) FROM checkpoint_migrations)")
    with pytest.raises(CheckpointerConfigurationError, match="of an older version"):
        await EnhancedCheckpointerManager(postgres(database_url, auto_setup=False)).initialize()
    async with opened(postgres(database_url, require_primary=True)):
        pass
