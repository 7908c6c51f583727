"""`checkpointing demo` as a user runs it: a process of its own, real databases, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.postgres import postgres_binaries

COMMAND = [sys.executable, "-m", "enhanced_checkpointing.cli.entry", "demo"]
REPORT = ["equal", "verdict", "database", "seed", "seconds", "conversations", "bare_saver_lost", "faults", "operations"]
REPORT += ["latency_milliseconds", "timeline"]
CONVERSATION = ["conversation", "title", "messages", "twin_messages", "checkpoints", "twin_checkpoints", "difference"]
CONVERSATION += ["bare_saver_lost_it", "bare_saver_turn"]
SHORT = ["--conversations", "2", "--turns", "2", "--pace", "0.2"]


@pytest.fixture
def temporary_directory() -> Iterator[Path]:
    """Where the demo puts all it needs; the test fails when files are left in it, or processes that know it."""
    # Not below pytest's own, which the server's user cannot enter when the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="demo-test-"))
    directory.chmod(0o755)
    yield directory
    left = [path.name for path in directory.iterdir()]
    processes = [pid for pid in os.listdir("/proc") if pid.isdigit() and knows(int(pid), directory)]
    shutil.rmtree(directory)
    assert not left
    assert not processes


def knows(pid: int, directory: Path) -> bool:
    try:
        return str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def environment(directory: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(directory), "COLUMNS": "80", "LINES": "24", "PYTHONUNBUFFERED": "1"}


def play(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment(directory),
    )
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended


def report_in(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    report = json.loads(ended.stdout)
    assert isinstance(report, dict)
    return report


def test_demo_kills_a_postgresql_and_proves_that_nothing_was_lost(temporary_directory: Path) -> None:
    postgres_binaries()
    ended = play(temporary_directory, *SHORT, "--json")
    report = report_in(ended)
    assert ended.returncode == 0, report["verdict"]
    assert report["equal"]
    assert report["faults"] == {"kill": 1}
    assert sorted(report) == sorted(REPORT)
    assert sorted(report["conversations"][0]) == sorted(CONVERSATION)
    assert sorted(report["timeline"][0]) == ["at", "source", "text"]
    assert report["operations"]["journaled"] == report["operations"]["drained"] > 0
    assert {event["text"] for event in report["timeline"] if event["source"] == "state"} >= {"OUTAGE", "HEALTHY"}
    assert len(report["conversations"]) == 2
    for row in report["conversations"]:
        assert row["messages"] == row["twin_messages"] > 0
        assert row["checkpoints"] == row["twin_checkpoints"] > 0


def test_demo_ends_with_exit_code_1_when_what_is_stored_differs(temporary_directory: Path) -> None:
    ended = play(temporary_directory, *SHORT, "--plant-difference")
    assert ended.returncode == 1
    assert "1 of 2 conversations differ" in " ".join(ended.stdout.split())
    assert "database killed" in ended.stdout
    assert "OUTAGE" in ended.stdout
    assert "\x1b" not in ended.stdout  # no terminal, so no colours and no drawing


@pytest.mark.nightly
def test_demo_cuts_only_its_own_connections_to_a_given_server(
    temporary_directory: Path, private_postgres: LocalPostgres
) -> None:
    url = private_postgres.url().replace("postgres@", "postgres:s3cr3t@")
    ended = play(temporary_directory, *SHORT, "--turns", "4", "--json", "--database-url", url)
    report = report_in(ended)
    assert ended.returncode == 0, report["verdict"]
    assert set(report["faults"]) == {"cut", "hang"}
    assert report["operations"]["journaled"] > 0
    assert "s3cr3t" not in ended.stdout + ended.stderr
    with psycopg.connect(private_postgres.url()) as connection:
        tables = connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'checkpoints'").fetchall()
    assert tables == []


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.nightly), signal.SIGTERM])
def test_stopped_in_an_outage_the_demo_leaves_nothing_behind(temporary_directory: Path, number: signal.Signals) -> None:
    postgres_binaries()
    with subprocess.Popen(
        [*COMMAND, *SHORT, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(temporary_directory),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits it ignored
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "OUTAGE" in line)
        process.send_signal(number)
        started = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Stopped. Nothing was left behind.\n"
    assert time.monotonic() - started < 20


@pytest.mark.nightly
def test_demo_locks_a_sqlite_file_in_a_live_display_and_proves_that_nothing_was_lost(temporary_directory: Path) -> None:
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *SHORT, "--sqlite"],
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        stderr=its_end,
        env=environment(temporary_directory) | {"TERM": "xterm-256color"},
    ) as process:
        os.close(its_end)
        shown = b"".join(iter(lambda: read(terminal), b"")).decode()
    os.close(terminal)
    assert process.returncode == 0
    for part in ("HEALTHY", "OUTAGE", "to journal", "latency", "turn 2 of 2", "nothing was lost"):
        assert part in shown
    assert "\x1b[" in shown
    assert "Traceback" not in shown


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # what Linux says when the other end is closed
        return b""
