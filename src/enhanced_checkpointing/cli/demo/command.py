"""`checkpointing demo`: agent teams talk while their database is killed, and at the end every word is compared.

Each conversation runs three times: once as a twin that meets no fault, then twice at the same time over the same
broken database, on the checkpointer of this library and on LangGraph's own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from langchain_core.runnables import RunnableConfig
from pydantic import SecretStr

from enhanced_checkpointing import EnhancedCheckpointerManager, initialize_enhanced_checkpointing
from enhanced_checkpointing.cli.demo.databases import DemoDatabase, open_database
from enhanced_checkpointing.cli.demo.postgres_server import PostgresStartError
from enhanced_checkpointing.cli.demo.record import Conversation, Record, Report, Row, State, compare, read_stored
from enhanced_checkpointing.cli.demo.screen import Screen, open_screen
from enhanced_checkpointing.cli.demo.team import Script, Twin, converse, plant_difference, run_twin, write_script
from enhanced_checkpointing.cli.options import url
from enhanced_checkpointing.cli.output import UsageError
from enhanced_checkpointing.config_rules import connection_string_problem, libpq_spelling
from enhanced_checkpointing.errors import CheckpointerConfigurationError, CheckpointerError, redact

CALM_TURNS = 0.3
"""How long, in turns of the conversations, the database is left alone before it is broken."""

BROKEN_TURNS = 0.5
"""How long, in turns, it stays broken at least, so that the conversations go on in the outage."""

LOOK_SECONDS = 0.02
"""How often it is looked whether something happened."""

STUCK_SECONDS = 15.0
"""How long anything is waited for that should have happened by itself."""


@dataclass(frozen=True)
class Plan:
    """How much of everything; `plant_difference` changes what is stored before it is compared, to see it noticed."""

    conversations: int
    turns: int
    seed: int
    pace: float
    """Seconds that the model thinks, on average: seven to nine times in a turn."""
    plant_difference: bool = False


def play(plan: Plan, *, database_url: str | None, sqlite: bool, as_json: bool, plain: bool) -> int:
    """Run the demo and print it; returns the exit code: 0 nothing differs, 1 something does, 2 it could not run."""
    screen = open_screen(as_json=as_json, plain=plain)
    try:
        report = asyncio.run(_run(plan, _checked(database_url), sqlite, screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Stopped. Nothing was left behind.", file=sys.stderr)
        return 130
    except (psycopg.Error, PostgresStartError, CheckpointerError, UsageError, OSError) as error:
        print(f"The demo could not run: {redact(error).strip()}", file=sys.stderr)
        return 2
    screen.print_report(report)
    return 0 if report.equal else 1


def _checked(database_url: str | None) -> str | None:
    """The URL as libpq reads it, before libpq meets it: its own words on one that it cannot read quote the password.

    Raises:
        CheckpointerConfigurationError: it cannot be read, or not as it is meant.
    """
    database_url = url("--database-url", database_url)
    if database_url is None:
        return None
    spelled = libpq_spelling(SecretStr(database_url))
    if (problem := connection_string_problem(spelled)) is not None:
        raise CheckpointerConfigurationError(f"--database-url: {problem}")
    return spelled.get_secret_value()


async def _run(plan: Plan, database_url: str | None, sqlite: bool, screen: Screen) -> Report:
    this_task = asyncio.current_task()
    assert this_task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this_task.cancel)  # so that everything is closed
    record = Record(on_event=screen.on_event)
    record.meter.install()
    async with screen.following(record):
        with _log_lines_into(record):
            record.tell("demo", "starting the database")
            async with open_database(database_url, sqlite=sqlite) as database:
                return await _tell(plan, database, record)


async def _tell(plan: Plan, database: DemoDatabase, record: Record) -> Report:
    """The whole story on an open database."""
    record.title = database.title
    scripts = [write_script(plan.seed, number, plan.turns) for number in range(plan.conversations)]
    twins = [await run_twin(script) for script in scripts]
    record.guarded = _conversations("conversation", scripts, twins)
    record.bare = _conversations("bare saver", scripts, twins)
    record.tell("demo", f"{plan.conversations} conversations begin on {database.title}")
    manager = await initialize_enhanced_checkpointing(custom_config=database.configure(), logger_service=record)
    try:
        bare_ended = await _talk_through_faults(plan.pace, scripts, database, manager, record)
    finally:
        await manager.cleanup()
    record.tell("demo", "the checkpointer is closed; LangGraph's own saver reads what is stored")
    rows = []
    async with database.reader() as reader:
        if plan.plant_difference:
            await plant_difference(scripts[0], reader, record.guarded[0].name)
        for guarded, bare, ended, twin in zip(record.guarded, record.bare, bare_ended, twins, strict=True):
            found = compare(await read_stored(reader, guarded.name), twin.stored)
            rows.append(Row.of(guarded, found, bare, bare_equal=ended == twin.stored.messages))
    return Report.of(record, rows, seed=plan.seed)


def _conversations(kind: str, scripts: list[Script], twins: list[Twin]) -> list[Conversation]:
    return [
        Conversation(f"{kind} {number}", script.title, len(script.turns), twin.calls)
        for number, (script, twin) in enumerate(zip(scripts, twins, strict=True), start=1)
    ]


async def _talk_through_faults(
    pace: float, scripts: list[Script], database: DemoDatabase, manager: EnhancedCheckpointerManager, record: Record
) -> list[tuple[str, ...]]:
    """Run all conversations on both savers and the faults beside them; returns what the bare ones ended with."""
    saver = manager.get_checkpointer()
    assert saver is not None
    # The bare saver is closed before its conversations are waited for: one that hangs in it ends by nothing else.
    async with asyncio.TaskGroup() as group, database.bare_saver() as bare_saver:
        watching = group.create_task(_watch(manager, record))
        guarded, bare = [], []
        for script, one, other in zip(scripts, record.guarded, record.bare, strict=True):
            config = manager.create_thread_config(one.name, new=True)
            guarded.append(group.create_task(converse(script, saver, config, one, record, pace)))
            bare_config: RunnableConfig = {"configurable": {"thread_id": other.name}}
            bare.append(group.create_task(converse(script, bare_saver, bare_config, other, record, pace)))
        await _break_and_mend(database, record)
        await asyncio.wait(guarded)
        record.tell("demo", "all conversations are over")
        if not await manager.wait_drained(STUCK_SECONDS):
            record.tell("demo", f"the journal is still not empty after {STUCK_SECONDS:.0f} s")
        if not all(task.done() for task in bare):
            record.tell("demo", "the bare saver's conversations are behind; they may still end")
        await asyncio.wait(bare, timeout=STUCK_SECONDS)
        watching.cancel()
    return [task.result() for task in bare]


async def _watch(manager: EnhancedCheckpointerManager, record: Record) -> None:
    """Keep the record's state at what the manager's health says."""
    while True:
        health = manager.health_status
        record.note_journal(health["journal"]["pending"], health["journal"]["dead_letters"])
        if health["primary_checkpointer"]["breaker"] == "open":
            record.enter(State.OUTAGE)
        else:
            record.enter(State.DRAINING if record.pending else State.HEALTHY)
        await asyncio.sleep(LOOK_SECONDS)


async def _break_and_mend(database: DemoDatabase, record: Record) -> None:
    """Break the database again and again, as long as a turn is left to recover in."""
    for fault in itertools.cycle(database.faults):
        await _until_turns_are_done(record, record.turns_done + CALM_TURNS)
        if record.over or record.turns_left < 1:
            return
        record.tell("fault", fault.breaks)
        await database.apply(fault)
        record.fault, broken_at, broken_until = fault.breaks, record.elapsed, record.turns_done + BROKEN_TURNS
        record.faults[fault.name] += 1
        try:
            await asyncio.sleep(fault.seconds)
            await _until_turns_are_done(record, broken_until)
        finally:
            await database.mend(fault)  # also when we are stopped: what hangs on a frozen server could not be closed
        record.fault = None
        record.tell("fault", f"{fault.mends} after {record.elapsed - broken_at:.1f} s")
        await _until(lambda: record.state is State.HEALTHY)


async def _until_turns_are_done(record: Record, turns: float) -> None:
    await _until(lambda: record.over or record.turns_done >= turns)


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for something that should happen by itself, and go on without it when it does not."""
    for _ in range(int(STUCK_SECONDS / LOOK_SECONDS)):
        if condition():
            return
        await asyncio.sleep(LOOK_SECONDS)


@contextmanager
def _log_lines_into(record: Record) -> Iterator[None]:
    """Whatever is logged meanwhile belongs to the story, not between the lines of the screen."""
    handler, root = _ToTimeline(record), logging.getLogger()
    others, root.handlers = root.handlers, [handler]
    try:
        yield
    finally:
        root.handlers = others


class _ToTimeline(logging.Handler):
    def __init__(self, record: Record) -> None:
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith("psycopg"):  # a driver's words on each broken connection, again and again
            self._record.tell("log", record.getMessage())
