"""The lines an operator reads: what they say, how few they are, and that they carry no secret."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.observability.events import (
    AttemptAbandoned,
    ConfigurationFault,
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    Gauges,
    Notice,
    OperationScope,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    ProbeFinished,
    RetryScheduled,
    ThreadDrained,
)
from enhanced_checkpointing.observability.log import LoggingSink, PoolNoiseFilter

STARTED = OutageStarted("postgres", "connection refused", 1000.0)
RECOVERED = PrimaryRecovered("postgres", 3600.0, 120)
ENDED = OutageEnded("postgres", 1000.0, 3602.0, journaled=120, drained=120, dead_letters=0, divergences=0)
FAILED_OVER = FailedOver("postgres", "put", "connection refused")
FAULT = ConfigurationFault("postgres", "password authentication failed", "mend DATABASE_URL")


class Recorder:
    """The `logger_service` of an application: finished strings by level, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, message: str) -> None:
        self.lines.append(("info", message))

    def warning(self, message: str) -> None:
        self.lines.append(("warning", message))

    def error(self, message: str) -> None:
        self.lines.append(("error", message))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A sink over a recorder and a clock that stands still."""

    def __init__(self) -> None:
        self.recorder, self.clock = Recorder(), Clock()
        self.sink = LoggingSink(self.recorder, self.clock)

    def emit(self, *events: Event) -> list[tuple[str, str]]:
        """Return the lines that `events` made."""
        before = len(self.recorder.lines)
        for event in events:
            self.sink.emit(event)
        return self.recorder.lines[before:]


@pytest.mark.parametrize(
    ("keeps_writes", "words"), [(True, "writes wait in the journal"), (False, "writes are refused")]
)
def test_outage_s_line_says_what_becomes_of_writes(keeps_writes: bool, words: str) -> None:
    recorder = Recorder()
    LoggingSink(recorder, Clock(), keeps_writes=keeps_writes).emit(STARTED)
    assert words in recorder.lines[0][1]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (STARTED, "warning", ["outage", "postgres", "connection refused", "journal"]),
        (RECOVERED, "info", ["postgres", "3600.0 s", "120 journaled"]),
        (ENDED, "info", ["over after 3602.0 s", "120 operations", "0 dead letters", "primary holds everything"]),
        (
            OutageEnded("postgres", 1.0, 2.0, journaled=5, drained=4, dead_letters=1, divergences=2),
            "info",
            ["1 dead letters", "2 divergences", "stay on the journal"],
        ),
        (
            DeadLettered("postgres", "thread-1", "put", "value too long"),
            "error",
            ["thread-1", "value too long", "is kept"],
        ),
        (
            Diverged("postgres", "thread-1", "child", "a", "b", "thread-1--q"),
            "warning",
            ["thread-1", "child", "Both branches", "thread-1--q"],
        ),
        (FAULT, "error", ["password authentication failed", "mend DATABASE_URL"]),
        (FAILED_OVER, "warning", ["put", "connection refused", "journal"]),
        (
            ThreadDrained("postgres", "thread-1", 1.0, 1.0, 3, "paused"),
            "info",
            ["thread-1", "3 operations", "tried again"],
        ),
        (
            ThreadDrained("postgres", "thread-1", 1.0, 1.0, 3, "frozen"),
            "warning",
            ["thread-1", "until the refused operation is mended"],
        ),
        (Notice("CRITICAL", "disk full"), "error", ["disk full"]),
        (Notice("info", "hello"), "info", ["hello"]),
    ],
)
def test_transition_is_one_line_that_says_what_it_means(
    bench: Bench, event: Event, level: str, words: list[str]
) -> None:
    ((written_level, line),) = bench.emit(event)
    assert written_level == level
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "event",
    [
        RetryScheduled("put", "postgres", 1, 0.1, "OperationalError"),
        AttemptAbandoned("put", "postgres", 5.0, 1),
        ProbeFinished("postgres", 1.0, 0.1, "ConnectionTimeout"),
        ThreadDrained("postgres", "thread-1", 1.0, 1.0, 3, "drained"),
        Notice("debug", "detail"),
    ],
)
def test_single_steps_are_not_logged(bench: Bench, event: Event) -> None:
    assert bench.emit(event) == []


def test_operations_and_gauges_are_not_logged(bench: Bench) -> None:
    with bench.sink.operation(OperationScope("put", "postgres", "thread-1")):
        pass
    bench.sink.observe(Gauges)
    bench.sink.close()
    assert bench.recorder.lines == []


def test_outage_of_an_hour_is_a_handful_of_lines(bench: Bench) -> None:
    bench.emit(FAILED_OVER, FAILED_OVER, FAILED_OVER, STARTED)
    for _ in range(3600):
        bench.clock.now += 1.0
        bench.emit(
            FAILED_OVER,
            RetryScheduled("put", "postgres", 1, 0.1, "OperationalError"),
            AttemptAbandoned("put", "postgres", 5.0, 1),
            ProbeFinished("postgres", 1.0, 0.1, "OperationalError"),
        )
    bench.emit(RECOVERED, *[ThreadDrained("postgres", f"t{n}", 1.0, 0.1, 3, "drained") for n in range(500)], ENDED)
    assert len(bench.recorder.lines) == 4


def test_flapping_primary_is_shown_as_whole_outages_and_a_count(bench: Bench) -> None:
    for _ in range(1800):
        bench.clock.now += 2.0
        bench.emit(STARTED, RECOVERED, ENDED)
    lines = [line for _, line in bench.recorder.lines]
    openings = [line for line in lines if line.startswith("outage: ")]
    assert len(lines) == 3 * len(openings) <= 100
    assert "295 more openings" in openings[5]


def test_flapping_primary_that_stays_away_is_not_hidden(bench: Bench) -> None:
    for _ in range(20):
        bench.emit(STARTED, RECOVERED, ENDED)
    failed_probe = ProbeFinished("postgres", 1.0, 0.1, "OperationalError")
    assert bench.emit(STARTED, failed_probe) == []
    bench.clock.now += 30.0
    assert [level for level, _ in bench.emit(failed_probe, failed_probe)] == ["warning"]
    assert [level for level, _ in bench.emit(RECOVERED, ENDED)] == ["info", "info"]


def test_breaker_that_reopens_before_the_drain_is_done_is_one_pair_of_lines_a_minute(bench: Bench) -> None:
    bench.emit(STARTED, RECOVERED)
    for _ in range(60):
        bench.clock.now += 1.0
        bench.emit(STARTED, RECOVERED)
    assert [level for level, _ in bench.recorder.lines] == ["warning", "info"] * 2
    assert [level for level, _ in bench.emit(ENDED)] == ["info"]


def test_failovers_outside_an_outage_are_one_line_a_minute_with_their_count(bench: Bench) -> None:
    assert len(bench.emit(FAILED_OVER, FAILED_OVER, FAILED_OVER)) == 1
    bench.clock.now += 59.0
    assert bench.emit(FAILED_OVER) == []
    bench.clock.now += 1.0
    ((_, line),) = bench.emit(FAILED_OVER)
    assert "3 more" in line


def test_paused_drains_do_not_hide_a_frozen_thread(bench: Bench) -> None:
    paused = [ThreadDrained("postgres", f"t{n}", 1.0, 0.1, 3, "paused") for n in range(100)]
    frozen = [ThreadDrained("postgres", f"f{n}", 1.0, 0.1, 3, "frozen") for n in range(100)]
    assert [level for level, _ in bench.emit(*paused, *frozen)] == ["info", "warning"]


def test_dead_letters_are_named_one_by_one_until_they_flood(bench: Bench) -> None:
    flood = [DeadLettered("postgres", f"thread-{n}", "put", "no such table") for n in range(1000)]
    assert len(bench.emit(*flood)) == 10
    bench.clock.now += 60.0
    ((_, line),) = bench.emit(flood[0])
    assert "990 more" in line


def test_same_configuration_fault_is_written_again_only_after_five_minutes(bench: Bench) -> None:
    assert len(bench.emit(FAULT, FAULT)) == 1
    bench.clock.now += 299.0
    assert bench.emit(FAULT) == []
    other = ConfigurationFault("postgres", "permission denied", "grant")
    assert len(bench.emit(other)) == 1
    bench.clock.now += 1.0
    assert len(bench.emit(FAULT)) == 1


@pytest.mark.parametrize(
    "event",
    [
        OutageStarted("postgres", "postgresql://me:hunter2@db/x\npassword=hunter2", 1.0),
        FailedOver("postgres", "put", "password=hunter2\nDETAIL: gone"),
        DeadLettered("postgres", "t", "put", "password=hunter2\nCONTEXT: COPY"),
        ConfigurationFault("postgres", "password=hunter2\n", "postgresql://me:hunter2@db/x"),
        Notice("warning", "password=hunter2\n"),
    ],
)
def test_line_has_no_secret_and_no_line_break(bench: Bench, event: Event) -> None:
    ((_, line),) = bench.emit(event)
    assert "hunter2" not in line
    assert "\n" not in line


def test_without_a_logger_lines_go_to_the_librarys_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        LoggingSink().emit(Notice("WARNING", "100 % of %s"))
    ((name, level, message),) = caplog.record_tuples
    assert (name, level, message) == ("enhanced_checkpointing", logging.WARNING, "100 % of %s")


def test_failing_logger_never_reaches_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Recorder):
        def warning(self, message: str) -> None:
            raise OSError("log disk full")

    sink = LoggingSink(Broken(), Clock())
    for _ in range(3):
        sink.emit(STARTED)
        sink.emit(ENDED)
    assert capsys.readouterr().err.count("log disk full") == 1


def test_logger_that_cannot_be_called_is_refused_at_start() -> None:
    class Coroutines(Recorder):
        async def error(self, message: str) -> None:  # type: ignore[override]
            raise AssertionError

    for unusable in (object(), Coroutines()):
        with pytest.raises(CheckpointerConfigurationError, match="logger_service needs a plain method"):
            LoggingSink(unusable)


# --- the pool's noise, made by the real pool


@pytest.fixture
def noise() -> Iterator[PoolNoiseFilter]:
    noise = PoolNoiseFilter("ours")
    noise.install()
    yield noise
    noise.remove()


def pool_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "psycopg.pool"]


async def fail_to_connect(name: str) -> None:
    """Let a pool called `name` try a port on which nothing listens, until it gives up."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        gave_up = asyncio.Event()
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            f"host=127.0.0.1 port={port} user=x dbname=x",
            name=name,
            min_size=1,
            open=False,
            reconnect_timeout=0.2,
            reconnect_failed=lambda _pool: gave_up.set(),
        )
        async with pool:
            await asyncio.wait_for(gave_up.wait(), 10.0)


@asynccontextmanager
async def postgres_that_hangs_up() -> AsyncIterator[int]:
    """A server that lets anyone in and hangs up at the first query; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(length - 4)
        writer.write(b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I")  # authenticated, ready for a query
        await writer.drain()
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def lose_a_connection(name: str, noise: PoolNoiseFilter | None) -> None:
    async def configure(connection: psycopg.AsyncConnection[Any]) -> None:
        if noise is not None:
            noise.claim(connection)

    async with postgres_that_hangs_up() as port:
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            f"host=127.0.0.1 port={port} user=x dbname=x gssencmode=disable sslmode=disable",
            name=name,
            min_size=1,
            open=False,
            configure=configure,
        )
        async with pool:
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection() as connection:
                    await connection.execute("select 1")


def test_our_pools_reconnect_warnings_are_folded_and_counted(
    noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(fail_to_connect("ours"))
    assert pool_lines(caplog) == []
    assert noise.folded >= 2


def test_other_pools_reconnect_warnings_stay(noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(fail_to_connect("theirs"))
    lines = pool_lines(caplog)
    assert any(line.startswith("error connecting in 'theirs'") for line in lines)
    assert any(line.startswith("reconnection attempt in pool 'theirs' failed") for line in lines)
    assert noise.folded == 0


def test_our_lost_connections_are_folded(noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(lose_a_connection("ours", noise))
    assert pool_lines(caplog) == []
    assert noise.folded == 1


def test_other_pools_lost_connections_stay(noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(lose_a_connection("theirs", None))
    assert [line for line in pool_lines(caplog) if line.startswith("discarding closed connection")]
    assert noise.folded == 0


def test_pool_lines_that_someone_turned_on_for_debugging_stay(
    noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "psycopg.pool"):
        asyncio.run(lose_a_connection("ours", noise))
    assert "connection requested from 'ours'" in pool_lines(caplog)


def test_installing_and_removing_twice_is_harmless(noise: PoolNoiseFilter, caplog: pytest.LogCaptureFixture) -> None:
    pool_logger = logging.getLogger("psycopg.pool")
    noise.install()
    assert pool_logger.filters.count(noise) == 1
    noise.remove()
    noise.remove()
    pool_logger.warning("error connecting in %r: %s", "ours", "gone")
    assert pool_lines(caplog) == ["error connecting in 'ours': gone"]
    assert noise.folded == 0


def test_claimed_connections_are_not_kept_alive(noise: PoolNoiseFilter) -> None:
    class Connection:
        pass

    connection = Connection()
    noise.claim(connection)
    logging.getLogger("psycopg.pool").warning("closing returned connection: %s", connection)
    assert noise.folded == 1
    del connection
    assert len(noise._connections) == 0
