"""A sweep of everything that this library lets out during an outage: the password and its like are nowhere in it."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from enhanced_checkpointing import (
    CheckpointerConfig,
    CheckpointerError,
    CheckpointerSettings,
    EnhancedCheckpointerManager,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
    get_production_checkpointer_config,
    initialize_enhanced_checkpointing,
)
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from enhanced_checkpointing.journal.opening import signer_of
from enhanced_checkpointing.observability.otel import OpenTelemetrySink
from enhanced_checkpointing.observability.recent import Message, Recent
from enhanced_checkpointing.serving import checkpointing_app
from tests.support.checkpointer import eventually, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.graphs import GRAPHS, run_case
from tests.support.journals import add, opened_journal
from tests.support.postgres import postgres_binaries
from tests.support.terminal import Ended, command

PLAIN = "correcthorsebatterystaple"
SPECIAL = "p@ss/w:rd %'\"\\ü&=?#"
KEY_PASSWORD = "keyphrase-of-the-client-key"
JOURNAL_KEY = "signs-the-journal-0123456789abcdef"
STATUS_TOKEN = "opens-the-page-0123456789abcdef"
SHORT = "Zq9short"
"""Too short for either."""


@pytest.fixture(scope="module", params=[PLAIN, SPECIAL], ids=["plain", "special characters"])
def guarded_postgres(request: pytest.FixtureRequest) -> Iterator[LocalPostgres]:
    """A server whose superuser has the password."""
    with LocalPostgres(postgres_binaries(), password=request.param) as server:
        yield server


@dataclass
class Sweep:
    """What came out, as text, by where it came out."""

    secrets: set[str]
    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, place: str, *texts: object) -> None:
        self.found += [(place, str(text)) for text in texts]

    def add_error(self, error: BaseException) -> None:
        """Its text, its repr, those of all its causes, and what a crash would print of it."""
        for one in chain_of(error):
            self.add("error", one, repr(one), one.args)
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if not frame.f_code.co_filename.startswith(TESTS):
                    self.add("frames", *strings_in_locals(frame.f_locals))
        self.add("traceback", *traceback.format_exception(error))

    def assert_clean(self) -> None:
        leaks = [f"{place}: {text}" for place, text in self.found if any(secret in text for secret in self.secrets)]
        assert not leaks, "\n".join(["a secret came out", *leaks])


def secrets_of(server: LocalPostgres) -> set[str]:
    """The secrets in every form in which they could come out."""
    password = server._password
    assert password is not None
    forms = {password, quote(password, safe=""), quote(password), password.replace("'", "\\'"), repr(password)[1:-1]}
    return {*forms, json.dumps(password)[1:-1], KEY_PASSWORD, JOURNAL_KEY, STATUS_TOKEN, SHORT}


@dataclass
class Outlets:
    """Where the library's own words come out."""

    sweep: Sweep
    tracers: TracerProvider
    meters: MeterProvider
    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    _client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def served(self, manager: EnhancedCheckpointerManager) -> AsyncIterator[httpx.AsyncClient]:
        """Serve what is told of a manager; all of it is taken with each `collect`, and once more at the end."""
        transport = httpx.ASGITransport(checkpointing_app(manager))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            self._client = client
            yield client
            await self.collect_served()
            self._client = None

    async def collect_served(self) -> None:
        if self._client is not None:
            for path in ("/", "/status.json", "/livez", "/readyz", "/health", "/health?fresh=1", "/metrics"):
                refused = await self._client.get(path)
                response = await self._client.get(path, headers={"Authorization": f"Bearer {STATUS_TOKEN}"})
                self.sweep.add("served", refused.text, *refused.headers.values())
                assert (refused.status_code, response.status_code) != (200, 401)
                kind = response.headers["Content-Type"]
                told = strings_in(response.json()) if kind == "application/json" else [response.text]
                self.sweep.add("served", *told, *map(html.unescape, told), *response.headers.values())

    async def collect(self, manager: EnhancedCheckpointerManager) -> None:
        """Take what is shown of an open manager and of all its parts."""
        await self.collect_served()
        parts = manager.components
        shown = [manager, manager.config, manager.get_checkpointer(), parts]
        shown += [getattr(parts, name) for name in parts.__slots__]
        self.sweep.add("repr", *map(repr, shown), *map(str, shown))
        self.sweep.add("health", json.dumps(manager.health_status))
        self.collect_spans()
        data = self.metrics.get_metrics_data()
        self.sweep.add("metrics", data.to_json() if data is not None else "")

    def collect_spans(self) -> None:
        self.sweep.add("spans", *(span.to_json() for span in self.spans.get_finished_spans()))


TESTS = str(Path(__file__).parents[1])


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error with all that led to it, also what is not shown of it: trackers walk through everything."""
    seen: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen[id(one)] = one
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    yield from seen.values()


def strings_in_locals(value: Any, depth: int = 4) -> Iterator[str]:
    """What an error tracker keeps of the variables of a frame: texts, what is in containers, and reprs of all else."""
    if isinstance(value, (str, bytes)):
        yield value if isinstance(value, str) else value.decode(errors="replace")
    elif isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from strings_in_locals(key, depth - 1)
            yield from strings_in_locals(item, depth - 1)
    elif isinstance(value, (list, tuple, set, frozenset)) and depth:
        for item in value:
            yield from strings_in_locals(item, depth - 1)
    else:
        with suppress(Exception):  # of a half-made object
            yield repr(value)


def strings_in(value: Any) -> list[str]:
    """Every string in a JSON value, as it was before it was written."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings_in(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [str(value)]


class Recording(logging.Handler):
    """Keeps each record with its arguments and its exception; psycopg's own records are psycopg's business."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(logging.DEBUG)
        self._sweep = sweep

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("psycopg"):
            self._sweep.add("log", record.getMessage(), record.args, record.exc_text or "")
            if record.exc_info and record.exc_info[1]:
                self._sweep.add_error(record.exc_info[1])


@contextmanager
def outlets(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outlets]:
    """Listen to everything at its most talkative."""
    spans, metrics = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([metrics])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("enhanced_checkpointing.manager.OpenTelemetrySink", lambda: OpenTelemetrySink(tracers, meters))
    handler, root = Recording(sweep), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield Outlets(sweep, tracers, meters, spans, metrics)
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        meters.shutdown()
        tracers.shutdown()


def config_of(server: LocalPostgres, **fields: Any) -> CheckpointerConfig:
    fields = {"journal_key": JOURNAL_KEY, "status_token": STATUS_TOKEN, "on_unknown_thread": "raise", **fields}
    return postgres(f"{server.url()}?sslpassword={KEY_PASSWORD}", **fields)


WRONG_FIELDS: tuple[dict[str, Any], ...] = (
    {"deadline": "soon"},
    {"no_such_setting": 1},
    {"thread_safe": False},
    {"journal_key": SHORT},
    {"status_token": SHORT},
    {"probe_backoff_min": 20.0},
)


def be_refused(sweep: Sweep, server: LocalPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that do not fit, beside a connection string: in code and in the environment."""
    url = server.url()
    for wrong in WRONG_FIELDS:
        for make in (
            create_postgres_checkpointer,
            lambda one, **fields: CheckpointerConfig(connection_string=one, **fields),
            lambda one, **fields: CheckpointerConfig().with_overrides(connection_string=one, **fields),
            lambda one, **fields: get_production_checkpointer_config(connection_string=one, **fields),
            lambda _, **fields: create_sqlite_checkpointer(**fields),
            lambda _, **fields: create_memory_checkpointer(**fields),
        ):
            with pytest.raises(CheckpointerError) as refused:
                make(url, **wrong)
            sweep.add_error(refused.value)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("CHECKPOINT_DEADLINE", "soon")
    with pytest.raises(CheckpointerError) as refused:
        CheckpointerSettings().to_config("production")
    sweep.add_error(refused.value)
    monkeypatch.delenv("CHECKPOINT_DEADLINE")
    for name in ("CHECKPOINT_JOURNAL_KEY", "CHECKPOINT_STATUS_TOKEN"):
        monkeypatch.setenv(name, SHORT)
        with pytest.raises(CheckpointerError) as refused:
            CheckpointerSettings().to_config("production")
        sweep.add_error(refused.value)
        monkeypatch.delenv(name)


async def be_refused_at_once(sweep: Sweep, server: LocalPostgres) -> None:
    for wrong in WRONG_FIELDS:
        with pytest.raises(CheckpointerError) as refused:
            await initialize_enhanced_checkpointing(connection_string=server.url(), **wrong)
        sweep.add_error(refused.value)


async def fail_to_start(sweep: Sweep, config: CheckpointerConfig) -> None:
    manager = EnhancedCheckpointerManager(config)
    with pytest.raises(CheckpointerError) as refused:
        await manager.initialize()
    sweep.add_error(refused.value)
    sweep.add("health", json.dumps(await manager.health_check()))


async def go_through_an_outage(server: LocalPostgres, out: Outlets) -> None:
    """A life with everything in it: refused starts, an outage, unanswered reads, an alarm, a drain, a stop."""
    sweep = out.sweep
    case = GRAPHS["counting_chain"]
    host = f"127.0.0.1:{server.port}"
    await fail_to_start(sweep, postgres(f"postgresql://postgres:{KEY_PASSWORD}@{host}/postgres"))
    await fail_to_start(sweep, config_of(server).with_overrides(connection_string=f"{server.url('missing')}"))
    manager = EnhancedCheckpointerManager(config_of(server))
    async with out.served(manager), manager:
        saver = saver_of(manager)
        await run_case(case, saver, "known")
        server.kill()
        await run_case(case, saver, "known")
        with pytest.raises(CheckpointerError) as unavailable:
            await saver.aget_tuple({"configurable": {"thread_id": "unknown"}})
        sweep.add_error(unavailable.value)
        with pytest.raises(CheckpointerError) as unlisted:
            await manager.list_threads()
        sweep.add_error(unlisted.value)
        await manager.health_check()
        await out.collect(manager)
        await fail_to_start(sweep, config_of(server, require_primary=True))
        await asyncio.to_thread(server.start)
        await recovered(manager)
        change_password(server)
        await run_case(case, saver, "known")  # journaled and alarmed
        with pytest.raises(CheckpointerError) as refused:
            await saver.aget_tuple({"configurable": {"thread_id": "unknown"}})
        sweep.add_error(refused.value)
        await manager.health_check()
        await out.collect(manager)
        change_password(server, back=True)
        await recovered(manager)
    out.collect_spans()


def change_password(server: LocalPostgres, *, back: bool = False) -> None:
    """Make the password of the configuration wrong, or right again, and end the sessions that were let in before."""
    url = f"postgresql://keeper:keeper@127.0.0.1:{server.port}/postgres"
    if not back:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("DROP ROLE IF EXISTS keeper")
            connection.execute("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD 'keeper'")
    with psycopg.connect(url, autocommit=True) as connection:
        password = psycopg.sql.Literal(server._password if back else "another")
        connection.execute(psycopg.sql.SQL("ALTER ROLE postgres PASSWORD {}").format(password))
        connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'postgres'")


async def test_outage_lets_no_secret_out(guarded_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(secrets_of(guarded_postgres))
    monkeypatch.setenv("DATABASE_URL", guarded_postgres.url())
    settings = CheckpointerSettings()
    sweep.add("settings", settings, repr(settings), settings.model_dump(), settings.model_dump_json())
    config = settings.to_config("production")
    sweep.add("config", config, repr(config), config.model_dump(), config.model_dump_json())
    be_refused(sweep, guarded_postgres, monkeypatch)
    await be_refused_at_once(sweep, guarded_postgres)
    with outlets(sweep, monkeypatch) as out:
        await go_through_an_outage(guarded_postgres, out)
    places = {place for place, text in sweep.found if len(text) > 2}
    assert places == {
        "frames",
        "settings",
        "config",
        "log",
        "error",
        "traceback",
        "repr",
        "health",
        "served",
        "spans",
        "metrics",
    }
    assert any("refuses for a permanent reason" in text for place, text in sweep.found)
    sweep.assert_clean()


SECRET_OF_A_USER = "sk-live-4eC39"


def forbid(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        rule = b"ADD CONSTRAINT rule CHECK (metadata->>'forbidden' IS NULL)"
        connection.execute(b"ALTER TABLE checkpoints " + rule)


async def test_details_of_a_server_s_error_let_nothing_out_that_was_stored(
    private_postgres: LocalPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL quotes the data in the details of its errors: of a refused value, and of a row that breaks a rule."""
    sweep, server = Sweep({SECRET_OF_A_USER}), private_postgres
    with outlets(sweep, monkeypatch) as out:
        manager = EnhancedCheckpointerManager(postgres(server.url()))
        async with out.served(manager) as client, manager:
            threads = {name: Thread(saver_of(manager), name) for name in ("live", "checked", "lettered")}
            for thread in threads.values():
                await thread.put(note=SECRET_OF_A_USER)
            with pytest.raises(psycopg.Error) as refused:  # the caller's own, with everything in it
                await threads["live"].put(note=SECRET_OF_A_USER, nested={"text": "a\x00b"})
            assert SECRET_OF_A_USER in str(refused.value)
            await asyncio.to_thread(forbid, server.url())
            await asyncio.to_thread(server.kill)
            with pytest.raises(psycopg.Error) as checked:
                await threads["checked"].put(note=SECRET_OF_A_USER, score=float("nan"))
            sweep.add("error", checked.value, repr(checked.value))  # frames hold what is written
            await threads["lettered"].put(note=SECRET_OF_A_USER, forbidden=True)
            await asyncio.to_thread(server.start)
            await eventually(lambda: bool(manager.health_status["journal"]["frozen_threads"]))
            await manager.health_check()
            await out.collect(manager)
            journal = manager.components.journal
            assert journal is not None
            (letter,) = journal.dead_letters()
            sweep.add("dead letter", letter.error)
            assert "violates check constraint" in (await client.get("/")).text
            assert "violates check constraint" in letter.error
            assert "23514" in letter.error
        out.collect_spans()
    assert any("dead letter" in text for place, text in sweep.found if place == "log")
    sweep.assert_clean()


def in_log(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    logging.getLogger("enhanced_checkpointing.anywhere").debug("connecting to %s", url)


def in_log_arguments(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    logging.getLogger("enhanced_checkpointing").info("connecting to %.1s", url)


def in_logged_exception(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    logging.getLogger("enhanced_checkpointing").error("failed", exc_info=ValueError(url))


def in_cause(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    error = CheckpointerError("not available")
    error.__cause__ = ValueError(url)
    out.sweep.add_error(error)


def in_frame(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    try:
        json.loads(url)
    except ValueError as error:
        out.sweep.add_error(error)


def in_health(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    manager.components.prober.last_error = f"cannot connect to {url}"


def in_span(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    out.tracers.get_tracer("enhanced_checkpointing").start_span("probe", attributes={"url": url}).end()


def in_metric(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    out.meters.get_meter("enhanced_checkpointing").create_counter("calls").add(1, {"url": url})


def in_served_message(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    (recent,) = [sink for sink in manager._telemetry._sinks if isinstance(sink, Recent)]
    recent._messages.append(Message(0.0, "ERROR", f"cannot connect to {url}"))


def in_repr(url: str, manager: EnhancedCheckpointerManager, out: Outlets) -> None:
    object.__setattr__(manager.config, "database_path", url)


PLANTS = (
    in_log,
    in_log_arguments,
    in_logged_exception,
    in_cause,
    in_frame,
    in_health,
    in_span,
    in_metric,
    in_served_message,
    in_repr,
)


@pytest.mark.parametrize("plant", PLANTS)
async def test_planted_leak_is_found(
    plant: Callable[[str, EnhancedCheckpointerManager, Outlets], None],
    guarded_postgres: LocalPostgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = Sweep(secrets_of(guarded_postgres))
    with outlets(sweep, monkeypatch) as out:
        manager = EnhancedCheckpointerManager(config_of(guarded_postgres))
        async with out.served(manager), manager:
            await run_case(GRAPHS["counting_chain"], saver_of(manager), "thread")
            await out.collect(manager)
            sweep.assert_clean()
            plant(guarded_postgres.url(), manager, out)
            await out.collect(manager)
    with pytest.raises(AssertionError, match="a secret came out"):
        sweep.assert_clean()


HALVES = ("Zq1first", "Zq2second")
"""What a password is made of that was written into a URL as it is."""
FIRST, SECOND = HALVES
MISTYPED = (
    *(f"postgresql://u:{FIRST}{sign}{SECOND}@127.0.0.1:1/db" for sign in "@/#?%:[ &=\\\n"),
    f"postgresql://u:{FIRST}%zz{SECOND}@127.0.0.1:1/db",
    f"postgresql://u:[{FIRST}]{SECOND}@127.0.0.1:1/db",
    f"postgresql://u:{FIRST}/{SECOND}/d@127.0.0.1:1",
    f"postgresql://127.0.0.1:1/db?user=u&password={FIRST}&{SECOND}",
    f"postgresql://127.0.0.1:1/db?user=u&pasword={FIRST}",
    f"host=127.0.0.1 port=1 user=u password={FIRST} {SECOND}",
    f"host=127.0.0.1 port=1 user=u password='{FIRST} {SECOND}'",
    f"host=127.0.0.1 port=1 user=u password='{FIRST}",
    f"host=127.0.0.1 port=1 user=u pass={FIRST}",
    f"postgresql://u:{FIRST}@127.0.0.1:port/db",
    f"postgresql+asyncpg://u:{FIRST}/{SECOND}@127.0.0.1:1/db",
    f"postgres//u:{FIRST}@127.0.0.1:1/db",
    f"mysql://u:{FIRST}/{SECOND}@127.0.0.1:1/db",
    f" 'postgresql://u:{FIRST}@{SECOND}@127.0.0.1:1/db'",
)
NAMED_BY_OPTION = (
    ("doctor", "--timeout", "2", "--database-url"),
    ("health", "--timeout", "2", "--database-url"),
    ("setup", "--wait", "0", "--database-url"),
    ("threads", "list", "--database-url"),
    ("journal", "drain", "--database-url"),
    ("retention", "run", "--dry-run", "--database-url"),
    ("migrate", "nothing.sqlite"),
    ("export", "--quiet", "--thread", "a"),
    ("import", "/dev/null"),
    ("demo", "--plain", "--database-url"),
)
PROFILES: tuple[dict[str, str], ...] = (
    {},
    {"DEV_USE_SQLITE": "true"},
    {"CHECKPOINT_ENVIRONMENT": "testing"},
    {"CHECKPOINT_ENVIRONMENT": "production"},
)


def assert_halves_are_not_in(ended: Ended, *how: object) -> None:
    assert ended.code in (0, 1, 2), how
    said = "".join((ended.out + ended.err).split())  # a terminal's line breaks hide nothing
    assert "Traceback" not in said, how
    assert not [half for half in HALVES if half in said], (how, ended.out, ended.err)


def ways_to_say(url: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Every command that takes a database, however it is told: arguments and variables."""
    for form in ([], ["--json"]):
        for profile in PROFILES:
            yield ["doctor", *form], {"DATABASE_URL": url, **profile}
            yield ["doctor", "--env-file", "variables", *form], profile
        for named in NAMED_BY_OPTION:
            yield [*named, url, *(["out.jsonl"] if named[0] == "export" else []), *form], {}
    yield ["doctor"], {"OTEL_EXPORTER_OTLP_ENDPOINT": url.replace("postgresql", "http")}


FEW = 8
"""A push tries every eighth way with each URL, another eighth with the next; each night tries all with all."""


@pytest.mark.parametrize("every", [FEW, pytest.param(1, marks=pytest.mark.nightly)], ids=["few", "all"])
@pytest.mark.parametrize(("number", "url"), enumerate(MISTYPED), ids=MISTYPED)
def test_commands_do_not_show_a_password_that_was_not_encoded(number: int, url: str, every: int) -> None:
    """Whether the URL is in use, comes from a file or an option, or is only set: it is checked before it is shown."""
    Path("variables").write_text(f"DATABASE_URL={json.dumps(url)}\n")
    for arguments, variables in islice(ways_to_say(url), number % every, None, every):
        assert_halves_are_not_in(command(*arguments, **variables), arguments, variables)


@pytest.mark.parametrize("sign", "@/#?%:[ &=\\℀")
def test_health_does_not_show_a_password_in_the_application_s_url_that_was_not_encoded(sign: str) -> None:
    url = f"http://u:{FIRST}{sign}{SECOND}@127.0.0.1:1/checkpointing"
    for form in ((), ("--json",)):
        ended = command("health", "--url", url, "--timeout", "1", *form)
        assert ended.code == 2
        assert_halves_are_not_in(ended, form)


@pytest.mark.parametrize(
    "named",
    [one for one in NAMED_BY_OPTION if one[0] in ("migrate", "export", "import", "threads", "demo")]
    + [("health", "--timeout", "1", "--json", "--url")],
    ids=" ".join,
)
def test_password_in_an_argument_is_warned_of_and_one_in_a_variable_or_a_file_is_not(named: tuple[str, ...]) -> None:
    url = f"{'http' if named[-1] == '--url' else 'postgresql'}://u:{FIRST}@127.0.0.1:1/db"
    Path("url").write_text(f"{url}\n")
    Path("variables").write_text(f"IN_FILE={url}\n")

    def said(given: str, *more: str, **variables: str) -> tuple[str, str]:
        ended = command(*named, given, *(["out.jsonl"] if named[0] == "export" else []), *more, **variables)
        assert ended.code == 2
        assert_halves_are_not_in(ended, given)
        return ended.err, ended.out

    warning, *rest = said(url)[0].splitlines(keepends=True)
    assert "can be read by every user of this machine" in warning
    in_file = said("env:IN_FILE", "--env-file", "variables") if named[0] != "demo" else said("@url")
    assert said("env:HERE", HERE=url)[0] == said("@url")[0] == in_file[0] == "".join(rest), "the same, and no warning"
    Path("lines").write_text(f"{url}\n{url}\n")
    Path("blank").write_text("\n")
    Path("bytes").write_bytes(b"\xff")
    for given, what in {
        "env:NOT_SET": "names the variable NOT_SET, which is not set",
        "@not-there": "cannot be read: No such file",
        "@lines": "holds more than one line",
        "@blank": "is not set, or empty",
        "@bytes": "cannot be read: not UTF-8",
    }.items():
        assert what in " ".join(" ".join(said(given)).split()), given


def test_no_command_shows_the_key_of_the_journal_the_token_of_the_page_or_what_a_name_or_a_file_stands_for() -> None:
    async def leave() -> None:
        signer = signer_of(CheckpointerConfig(journal_key=JOURNAL_KEY))
        async with opened_journal(Path("journal"), signer=signer) as journal:
            await journal.dead_letter(await add(journal, "thread"), "refused")

    asyncio.run(leave())
    url = f"postgresql://u:{FIRST}@127.0.0.1:1/db"
    Path("url").write_text(url)
    where = ("--database-url", "@url", "--journal-dir", "journal", "--json")
    journal = ("--journal-dir", "journal", "--json")
    for key, token in ((JOURNAL_KEY, STATUS_TOKEN), (JOURNAL_KEY[::-1], STATUS_TOKEN), (SHORT, SHORT), (None, None)):
        environment = {"CHECKPOINT_JOURNAL_KEY": key, "CHECKPOINT_STATUS_TOKEN": token, "HERE": url}
        for words in (
            ("doctor", "--timeout", "1", *where),
            ("health", "--timeout", "1", *where),
            ("health", "--timeout", "1", "--json", "--url", "http://127.0.0.1:1"),
            ("journal", "status", *journal),
            ("journal", "dead-letters", *journal),
            ("journal", "quarantine", *journal),
            ("journal", "drain", "--timeout", "1", *where),
            ("threads", "list", "--database-url", "env:HERE", "--json"),
            ("erase", "--thread", "thread", "--yes", *where),
            ("audit", "verify", *journal),
        ):
            ended = command(*words, **environment)
            said = ended.out + ended.err
            assert "Traceback" not in said, words
            secrets = (JOURNAL_KEY, JOURNAL_KEY[::-1], STATUS_TOKEN, SHORT, FIRST)
            assert not [one for one in secrets if one in said], (words, said)


def test_password_in_the_environment_is_not_warned_of() -> None:
    url = f"postgresql://u:{FIRST}@127.0.0.1:1/db"
    for ended in (
        command("health", "--timeout", "1", "--database-url", "postgresql://u@127.0.0.1:1/db"),
        command("health", "--timeout", "1", DATABASE_URL=url, CHECKPOINT_ENVIRONMENT="production"),
    ):
        assert "can be read by every user" not in ended.err
