"""What the doctor makes of facts that cannot be made for real on every machine: clocks, versions, file systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.configuration import described_connection
from enhanced_checkpointing.cli.doctor import journal, postgres_checks, sqlite
from enhanced_checkpointing.cli.doctor.checks import Checks, Finding, Status, exit_code_of, failed, fine, warning
from enhanced_checkpointing.cli.doctor.journal import JournalFacts
from enhanced_checkpointing.cli.doctor.postgres import NEWEST_SCHEMA, TABLES, PostgresFacts
from enhanced_checkpointing.cli.doctor.settings import Machine, machine_checks, telemetry_checks
from enhanced_checkpointing.cli.doctor.sqlite import SqliteFacts
from enhanced_checkpointing.cli.doctor.trust import transport_checks
from enhanced_checkpointing.cli.output import ExitCode, age, one_size, paragraph, plural
from enhanced_checkpointing.config import (
    CheckpointerConfig,
    create_postgres_checkpointer,
)
from enhanced_checkpointing.errors import listed
from enhanced_checkpointing.journal.inspect import Owner, Survey, SurveyedLog

POSTGRES = create_postgres_checkpointer("postgresql://db/app")
SQLITE = CheckpointerConfig(checkpointer_type="sqlite")
NOW = 1_800_000_000.0


def only(findings: Iterator[Finding] | list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


# PostgreSQL


def facts(**changed: Any) -> PostgresFacts:
    """A sound server of version 18 with all tables."""
    answers: dict[str, dict[str, Any]] = {
        "server": {
            "version": "18.4",
            "encoding": "UTF8",
            "read_only": False,
            "in_recovery": False,
            "fsync": "on",
            "full_page_writes": "on",
        },
        "user": {"name": "app", "database": "app", "schema": "public", "may_create_tables": True},
        "connections": {"most": 100, "reserved": 3, "used": 1, "most_of_user": -1, "most_of_database": -1},
        "tables": dict.fromkeys(TABLES, True),
        "invalid_indexes": {"names": []},
    }
    for question, answer in changed.pop("answers", {}).items():
        answers[question] |= answer
    sound: dict[str, Any] = {"version": 180_004, "encrypted": True, "behind_pooler": False, "milliseconds": 1.0}
    return PostgresFacts(answers=answers, **{"schema_version": NEWEST_SCHEMA, **sound, **changed})


def judged(found: PostgresFacts, name: str, config: CheckpointerConfig = POSTGRES) -> Finding:
    return only(postgres_checks.checks.judge(found, config), f"database.{name}")


def test_sound_server_has_nothing_to_mend() -> None:
    assert {finding.status for finding in postgres_checks.checks.judge(facts(), POSTGRES)} == {Status.FINE}


@pytest.mark.parametrize(
    ("version", "status"), [(130_010, Status.FAILED), (140_000, Status.FINE), (190_000, Status.FINE)]
)
def test_server_that_is_too_old_for_the_fence_is_told(version: int, status: Status) -> None:
    assert judged(facts(version=version), "version").status is status


def test_standby_is_told_from_a_server_that_somebody_made_read_only() -> None:
    standby = judged(facts(answers={"server": {"in_recovery": True, "read_only": True}}), "writable")
    assert (standby.status, "target_session_attrs=read-write" in standby.fix) == (Status.FAILED, True)
    made = judged(facts(answers={"server": {"read_only": True}}), "writable")
    assert (made.status, "RESET" in made.fix) == (Status.FAILED, True)


@pytest.mark.parametrize(
    ("offset", "error", "status"),
    [
        (0.4, 0.0, Status.FINE),
        (-5.0, 4.5, Status.FINE),
        (-5.0, 0.1, Status.WARNING),
        (40.0, 0.1, Status.FAILED),
    ],
)
def test_clocks_that_differ_by_more_than_the_question_took_are_told(
    offset: float, error: float, status: Status
) -> None:
    found = judged(facts(clock_offset=offset, clock_error=error), "clock")
    assert found.status is status
    if status is not Status.FINE:
        assert ("behind" if offset > 0 else "ahead of") in found.what


def test_limit_of_the_user_or_the_database_counts_where_it_is_the_smallest() -> None:
    found = judged(facts(answers={"connections": {"most_of_user": 5}}), "connections")
    assert (found.status, "the user's CONNECTION LIMIT leaves 5" in found.what) == (Status.FAILED, True)


def test_behind_a_pooler_nothing_is_said_of_the_server_s_connections() -> None:
    found = postgres_checks.checks.judge(facts(behind_pooler=True), POSTGRES)
    assert only(found, "database.pooler").status is Status.WARNING
    assert not [finding for finding in found if finding.name == "database.connections"]


def test_tables_of_a_newer_saver_are_used_and_said() -> None:
    found = judged(facts(schema_version=NEWEST_SCHEMA + 1), "schema")
    assert (found.status, "newer saver" in found.what) == (Status.FINE, True)


def test_question_that_was_refused_is_told_and_not_judged() -> None:
    refused = {"connections": "permission denied", "version": "permission denied"}
    answers = {name: answer for name, answer in facts().answers.items() if name != "connections"}
    found = replace(facts(), answers=answers, refused=refused, schema_version=None)
    told = judged(found, "connections")
    assert (told.status, "permission denied" in told.what) == (Status.WARNING, True)
    assert "cannot be read (permission denied)" in judged(found, "schema").what


# SQLite


def test_file_on_a_network_is_refused_and_little_room_is_warned_of() -> None:
    seen = SqliteFacts(Path("/x/f"), Path("/x"), False, "nfs4", free_bytes=1000)
    found = sqlite.checks.judge(seen, SQLITE)
    assert only(found, "database.filesystem").status is Status.FAILED
    assert only(found, "database.room").status is Status.WARNING


@pytest.mark.parametrize(
    ("code", "free", "word"),
    [
        ("SQLITE_IOERR_SHMSIZE", 0, "full"),
        ("SQLITE_IOERR_FSYNC", 10**9, "disk of the file fails"),
        ("SQLITE_BUSY_SNAPSHOT", 10**9, "locked"),
        ("SQLITE_SOMETHING", 10**9, "cannot be used"),
    ],
)
def test_error_of_a_file_is_explained_by_its_code(code: str, free: int, word: str) -> None:
    seen = SqliteFacts(Path("/x/f"), Path("/x"), True, None, error="words", code=code, free_bytes=free)
    assert word in only(sqlite.checks.judge(seen, SQLITE), "database.file").what


# The journal


def journal_facts(**changed: Any) -> JournalFacts:
    directory = Path("/data/journal")
    sound: dict[str, Any] = {"network": None, "memory": None, "free_bytes": 2**40, "sync_seconds": 0.001}
    return JournalFacts(
        directory=directory, folder=directory, **{"survey": Survey(directory, True), **sound, **changed}
    )


def journal_findings(found: JournalFacts, home: str | None = "home") -> list[Finding]:
    return journal.judge(found, SQLITE, home, NOW)


def book(**changed: Any) -> SurveyedLog:
    return SurveyedLog(
        **{"identity": "0" * 32, "begun_at": NOW - 60, "owner": Owner.DEAD, "process_ids": (), **changed}
    )


def test_sound_directory_has_nothing_to_mend() -> None:
    assert {finding.status for finding in journal_findings(journal_facts())} == {Status.FINE}


@pytest.mark.parametrize(
    ("changed", "name", "status"),
    [
        ({"network": "nfs4"}, "journal.directory", Status.FAILED),
        ({"memory": "tmpfs"}, "journal.directory", Status.WARNING),
        ({"error": "Read-only file system: /data", "sync_seconds": None}, "journal.directory", Status.FAILED),
        ({"error": "No space left on device", "sync_seconds": None}, "journal.room", Status.FAILED),
        ({"free_bytes": 10_000_000}, "journal.room", Status.WARNING),
        ({"sync_seconds": 0.2}, "journal.sync", Status.WARNING),
        ({"survey_error": "Permission denied", "survey": None}, "journal.contents", Status.FAILED),
        ({"untrusted": "/data/journal: it belongs to user 7", "survey": None}, "journal.directory", Status.FAILED),
    ],
)
def test_directory_that_does_not_fit_is_told(changed: dict[str, Any], name: str, status: Status) -> None:
    assert only(journal_findings(journal_facts(**changed)), name).status is status


def test_clock_that_went_back_since_a_book_was_begun_is_told() -> None:
    ahead = journal_facts(survey=Survey(Path("/data"), True, (book(begun_at=NOW + 3600),)))
    found = only(journal_findings(ahead), "journal.clock")
    assert (found.status, "1 h 0 min in the future" in found.what) == (Status.WARNING, True)


def test_backlog_is_ours_where_the_home_is_ours_or_is_not_known() -> None:
    left = book(home="home", waiting=(("a", 2),), oldest_at=NOW - 120)
    facts_ = journal_facts(survey=Survey(Path("/data"), True, (left,)))
    assert only(journal_findings(facts_), "journal.left").details["pending"] == 2
    assert only(journal_findings(facts_, home=None), "journal.left").details["pending"] == 2
    assert only(journal_findings(facts_, home="elsewhere"), "journal.foreign").status is Status.FAILED


# The machine


def machine_findings(config: CheckpointerConfig | None = None, **changed: Any) -> list[Finding]:
    return machine_checks.judge(Machine(**changed), config)


def test_python_that_is_too_old_is_told() -> None:
    assert only(machine_findings(python=(3, 10, 1)), "machine.python").status is Status.FAILED
    assert only(machine_findings(python=(3, 13, 0)), "machine.python").status is Status.FINE


@pytest.mark.parametrize(
    ("version", "status", "fix"),
    [
        ("1.5.0", None, ""),
        ("2.0.0", Status.FAILED, 'pip install "langgraph<2,>=1"'),
        (None, Status.FAILED, 'pip install "langgraph<2,>=1"'),
    ],
)
def test_package_outside_of_its_bounds_is_told(version: str | None, status: Status | None, fix: str) -> None:
    required = ["langgraph>=1,<2", 'typer>=9; extra == "cli"']
    found = machine_findings(required=required, installed={"langgraph": version, "typer": None})
    told = [(finding.status, finding.fix) for finding in found if finding.is_problem]
    assert told == ([] if status is None else [(status, fix)])


def test_driver_that_cannot_be_imported_is_told_with_its_words_where_postgresql_is_the_primary() -> None:
    found = only(machine_findings(POSTGRES, driver_error="libpq library not found"), "machine.psycopg")
    assert (found.status, "libpq library not found" in found.what) == (Status.FAILED, True)
    for sound in (machine_findings(POSTGRES), machine_findings(SQLITE, driver_error="libpq library not found")):
        assert not [finding for finding in sound if finding.name == "machine.psycopg"]


def test_event_loop_of_windows_is_warned_of_unless_the_manager_has_its_own() -> None:
    own = create_postgres_checkpointer("postgresql://db/app", enable_async=False)
    statuses = [
        only(machine_findings(config, platform=platform), "machine.event_loop").status
        for platform, config in (("win32", POSTGRES), ("win32", own), ("linux", own))
    ]
    assert statuses == [Status.WARNING, Status.FINE, Status.FINE]


def test_clock_that_was_never_set_or_goes_back_is_told() -> None:
    names = [found.name for found in machine_findings(now=0.0, clocks=(2.0, 1.0)) if found.is_problem]
    assert names == ["machine.clock", "machine.monotonic"]
    assert not [found for found in machine_findings(now=NOW) if found.is_problem]


def test_check_that_fails_is_a_finding_and_keeps_no_other_from_being_made() -> None:
    checks: Checks[str, int] = Checks()

    @checks("a.broken", "Is this a number?")
    def broken(text: str, base: int) -> Finding:
        return fine(str(int(text, base)))

    @checks("a.sound", "Is there a text?")
    def sound(text: str, base: int) -> Finding:
        return fine(f"It is {text}.")

    first, second = checks.judge("x", 10)
    assert (first.name, first.status, "Is this a number? This check failed: ValueError" in first.what) == (
        "a.broken",
        Status.FAILED,
        True,
    )
    assert (second.name, second.what) == ("a.sound", "It is x.")


# Telemetry


@pytest.mark.parametrize(
    ("environment", "status", "word"),
    [
        ({}, Status.FINE, "No collector"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, Status.FINE, "off"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, Status.FINE, "c:4318 listens"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, Status.FINE, "c:443 listens"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://down:4318"}, Status.WARNING, "refused"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:4318"}, Status.FAILED, "no URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:port"}, Status.FAILED, "no URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[c:4318"}, Status.FAILED, "no URL"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Status.FAILED,
            "not supported",
        ),
    ],
)
def test_collector_is_judged_by_the_standard_variables(environment: dict[str, str], status: Status, word: str) -> None:
    (found,) = telemetry_checks.judge(environment, lambda host, port: "refused" if host == "down" else "")
    assert (found.status, word in found.what) == (status, True), found


# What is shown


@pytest.mark.parametrize(
    ("connection_string", "shown"),
    [
        ("postgresql://ann:s3cr3t@db:5432/app?sslpassword=s3cr3t", "postgresql://ann:***@db:5432/app"),
        ("postgresql://db/app", "postgresql://db/app"),
        ("host=a,b port=1,2 dbname=app user=ann password=s3cr3t", "postgresql://ann:***@a:1,b:2/app"),
        ("host=a,b port=1 dbname=app passfile=/s3cr3t", "postgresql://a:1,b:1/app"),
        ("postgresql://%zz:s3cr3t@db", "(not shown: it cannot be read)"),
        ("postgresql://ann:s3cr3t/s3cr3t@db:5432/app", "(not shown: it cannot be read)"),
        ("postgresql://ann:s3cr3t@s3cr3t@db/app", "(not shown: it cannot be read)"),
        ("postgresql://ann:s3cr3t", "(not shown: it cannot be read)"),
    ],
)
def test_connection_is_shown_by_its_parts_and_never_with_a_secret(connection_string: str, shown: str) -> None:
    assert described_connection(connection_string) == shown


def test_warnings_do_not_fail_a_command_and_failures_do() -> None:
    assert exit_code_of([fine("a"), warning("b", "b", "b")]) is ExitCode.FINE
    assert exit_code_of([fine("a"), failed("b", "b", "b")]) is ExitCode.WRONG


@pytest.mark.parametrize(
    ("said", "given"),
    [
        (age, [(0.4, "0 s"), (59.0, "59 s"), (61, "1 min"), (3_660, "1 h 1 min"), (400_000, "4 days"), (-5, "0 s")]),
        (one_size, [(5, "5 bytes"), (2048, "2.0 KiB"), (50_000_000, "48 MiB"), (2**45, "32.0 TiB")]),
    ],
)
def test_figures_are_said_as_people_say_them(said: Callable[[float], str], given: list[tuple[float, str]]) -> None:
    assert [said(value) for value, _ in given] == [text for _, text in given]


def test_counts_and_lists_are_said_as_people_say_them() -> None:
    assert (plural(1, "thread"), plural(1200, "thread"), plural(2, "copy", "copies")) == (
        "1 thread",
        "1,200 threads",
        "2 copies",
    )
    assert listed(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_text_is_broken_at_words_and_what_can_be_copied_stays_whole() -> None:
    console = Console(width=40, color_system=None)
    path = "/a/very/long/path/that/is/longer/than/the/screen/is/wide"
    with console.capture() as capture:
        paragraph(console, Text("fix  "), f"Let the user of the application write {path} again.")
    lines = capture.get().splitlines()
    assert lines[0] == "fix  Let the user of the application"
    assert any(path in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize(
    ("host", "mode", "status"),
    [
        ("localhost", None, None),
        ("127.0.0.8", "disable", None),
        ("::1", None, None),
        ("/run/postgresql", None, None),
        ("db.example.org", None, "warning"),
        ("db.example.org", "disable", "warning"),
        ("db.example.org", "allow", "warning"),
        ("10.0.0.7", "prefer", "warning"),
        ("127.0.0.1,db.example.org", "prefer", "warning"),
        ("db.example.org", "require", "fine"),
        ("db.example.org", "verify-full", "fine"),
    ],
)
def test_connection_in_plain_text_is_warned_of_unless_it_stays_on_this_machine(
    host: str, mode: str | None, status: str | None
) -> None:
    ssl = f" sslmode={mode}" if mode else ""
    config = create_postgres_checkpointer(f"host={host} dbname=app user=u password=secret{ssl}")
    found = [(finding.status.value, finding.name) for finding in transport_checks.judge(config, None)]
    assert found == ([] if status is None else [(status, "database.tls")])
    told = " ".join(f"{finding.what} {finding.fix}" for finding in transport_checks.judge(config, None))
    assert "secret" not in told
    assert ("not proof" in told) is (mode == "require")
