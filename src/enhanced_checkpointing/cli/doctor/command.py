"""`checkpointing doctor`: checks everything that a start needs, changes nothing, and never hangs.

Each part is checked by itself, all at the same time, and within bounds: none waits for another."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.cli.configuration import DEFAULT, Options, Reading, Setting, reading
from enhanced_checkpointing.cli.database import bounded, imported_serializer, opened_primary
from enhanced_checkpointing.cli.doctor import journal, settings, sqlite
from enhanced_checkpointing.cli.doctor.checks import (
    Finding,
    Status,
    exit_code_of,
    failed,
    fine,
    skipped,
)
from enhanced_checkpointing.cli.doctor.journal import ask_journal
from enhanced_checkpointing.cli.doctor.sqlite import ask_sqlite
from enhanced_checkpointing.cli.doctor.trust import ask_files, files_checks, sampled_threads
from enhanced_checkpointing.cli.output import ExitCode, plural, print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact
from enhanced_checkpointing.journal.opening import signer_of
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.serialization import SharingSerializer

PATIENCE = 6
"""How many times `timeout` one part may take, of which it makes several steps."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found."""

    settings: tuple[Setting, ...]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def exit_code(self) -> ExitCode:
        return exit_code_of(self.findings)

    def count(self, status: Status) -> int:
        return sum(finding.status is status for finding in self.findings)


def run(options: Options, serde: str | None, *, timeout: float, as_json: bool) -> ExitCode:
    """Diagnose, print, and tell how it ended. With the application's serializer, `module:name`, its key is checked."""
    own = imported_serializer(serde) if serde else None
    with reading(options) as read:
        if own is not None and read.config is not None:
            read = replace(read, config=read.config.with_overrides(serde=own))
        diagnosis = asyncio.run(diagnose(read, options, timeout))
    print_diagnosis(diagnosis, as_json=as_json)
    return diagnosis.exit_code


async def diagnose(read: Reading, options: Options, timeout: float) -> Diagnosis:
    """Look at all parts; without a configuration only at those that need none. `timeout` is seconds of one step."""
    begun, config = time.monotonic(), read.config
    machine = settings.machine_checks.judge(settings.ask_machine(), config)
    found = [*settings.judge(read, options), *machine]
    parts: dict[str, Callable[[], Awaitable[Sequence[Finding]]]] = {
        "telemetry": lambda: _telemetry(read, timeout),
    }
    driver_is_missing = any(finding.name == "machine.psycopg" for finding in machine)
    if config is not None and config.enabled:
        home = None if driver_is_missing else _home(config)
        parts["journal"] = lambda: _journal(config, home)
        if sys.platform != "win32":
            look = partial(_files, config)
            parts["files"] = lambda: in_thread_of_its_own(look, "look at who can read files")
        if driver_is_missing:
            found.append(skipped("The database is not checked: psycopg is missing.", name="database"))
        else:
            parts["database"] = lambda: _database(config, timeout)
    elif config is None:
        found.append(skipped("Database and journal are not checked: the settings do not fit.", name="database"))
    each = await asyncio.gather(*(_looked_at(name, look, PATIENCE * timeout) for name, look in sorted(parts.items())))
    findings = (*found, *(finding for part in each for finding in part))
    return Diagnosis(read.settings, findings, time.monotonic() - begun)


async def _looked_at(name: str, look: Callable[[], Awaitable[Sequence[Finding]]], seconds: float) -> Sequence[Finding]:
    """The findings of one part, whatever happens while it is looked at."""
    unknown = "The state of this part is not known."
    try:
        return await bounded(look(), seconds)
    except TimeoutError:
        what = f"Checking the {name} did not end within {seconds:g} s."
        return [failed(what, unknown, "A disk or a network hangs, or the machine is overloaded.", name=name)]
    except Exception as error:  # noqa: BLE001  # the other parts are to be told all the same
        what = f"Checking the {name} failed: {type(error).__name__}: {redact(error)}"
        return [failed(what, unknown, "If the message does not say what to do, please report it.", name=name)]


def _home(config: CheckpointerConfig) -> str | None:
    try:
        return find_backend(config.backend_name)(config, SharingSerializer(config.serde)).database_id()
    except CheckpointerConfigurationError:
        return None  # the look at the database says why


async def _telemetry(read: Reading, timeout: float) -> Sequence[Finding]:
    def reached(host: str, port: int) -> str:
        try:
            socket.create_connection((host, port), timeout=timeout).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""

    judge = partial(settings.telemetry_checks.judge, read.environment, reached)
    return await in_thread_of_its_own(judge, "look for the collector")


def _files(config: CheckpointerConfig) -> list[Finding]:
    return files_checks.judge(ask_files(config), config)


async def _journal(config: CheckpointerConfig, home: str | None) -> Sequence[Finding]:
    directory, used = config.journal_dir.absolute(), config.journal == "durable"
    if sys.platform == "win32":
        return [skipped("Windows has no flock, which the journal on a disk needs: it is in memory.", name="journal")]
    if not used and not directory.exists():
        return [skipped(f"No journal on a disk is used (journal is {config.journal}).", name="journal")]
    facts = await in_thread_of_its_own(
        lambda: ask_journal(directory, measure=used, signer=signer_of(config)), "look at the journal"
    )
    return journal.judge(facts, config, home, time.time())


async def _database(config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    if config.backend_name == "memory":
        return [fine("The primary is memory: nothing outlives the process.", name="database")]
    if config.backend_name == "postgres":
        from enhanced_checkpointing.cli.doctor.postgres_checks import look_at_postgres  # here, as it needs psycopg

        return await look_at_postgres(config, timeout)
    if config.backend_name == "sqlite":
        return await _sqlite(config, timeout)
    return await _other(config, timeout)


async def _sqlite(config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    if str(config.database_path) == ":memory:":
        return [fine("The primary is SQLite in memory: nothing outlives the process.", name="database")]
    path = Path(config.database_path)
    # In a thread of its own, which is left behind when the disk hangs.
    facts = await in_thread_of_its_own(lambda: ask_sqlite(path, timeout, thorough=True), "look at the SQLite file")
    found = sqlite.checks.judge(facts, config)
    wanted = config.environment == "production" or config.serde is not None
    if wanted and facts.exists and not any(one.status is Status.FAILED for one in found):
        async with opened_primary(config.with_overrides(auto_setup=False)) as primary:
            found += await sampled_threads(primary, config, timeout)
    return found


async def _other(config: CheckpointerConfig, timeout: float) -> Sequence[Finding]:
    """A backend of a third party: it is opened and probed, as an application would."""
    name, means = f"database.{config.backend_name}", "An application that starts now is refused its start, or degraded."
    try:
        async with opened_primary(config) as primary:
            await primary.ask("probe", primary.backend.probe, timeout)
    except CheckpointerConfigurationError as error:
        return [failed(str(error), means, "See the message.", name=name)]
    except CallFailed as error:
        what, fix = f"A write does not work: {redact(error.error)}", error.failure.fix or "See the message."
        return [failed(what, means, fix, name=name)]
    return [fine(f"The backend {config.backend_name} takes writes.", name=name)]


def print_diagnosis(diagnosis: Diagnosis, *, as_json: bool) -> None:
    """Print everything that was found."""
    if as_json:
        print_json(as_object(diagnosis))
    else:
        _print(diagnosis, stdout())


def as_object(diagnosis: Diagnosis) -> dict[str, object]:
    """The diagnosis in plain JSON types."""
    return {
        "status": "failed" if diagnosis.exit_code else "fine",
        "failed": diagnosis.count(Status.FAILED),
        "warnings": diagnosis.count(Status.WARNING),
        "seconds": round(diagnosis.seconds, 3),
        "settings": [asdict(each) for each in diagnosis.settings],
        "findings": [finding.as_json() for finding in diagnosis.findings],
    }


def _print(diagnosis: Diagnosis, console: Console) -> None:
    console.print(Text("Settings", style="bold"))
    _print_settings(diagnosis, console)
    console.print()
    console.print(Text("Checked", style="bold"))
    order = (Status.FINE, Status.SKIPPED), (Status.WARNING,), (Status.FAILED,)  # the eye rests where it ends
    for finding in (finding for some in order for finding in diagnosis.findings if finding.status in some):
        if finding.is_problem:
            console.print()
        finding.print(console)
    console.print()
    console.print(_verdict(diagnosis))


def _print_settings(diagnosis: Diagnosis, console: Console) -> None:
    """Values stay whole, however long: they are there to be copied."""
    names = max(len(each.name) for each in diagnosis.settings)
    for each in diagnosis.settings:
        text = f"{each.name:<{names}}  {each.value:<20}  {each.source}"
        console.print(Text(text, style="dim" if each.source == DEFAULT else ""), soft_wrap=True)


def _verdict(diagnosis: Diagnosis) -> Text:
    wrong, odd = diagnosis.count(Status.FAILED), diagnosis.count(Status.WARNING)
    warned = f"{plural(odd, 'warning')}, " if odd else ""
    seconds = f"({diagnosis.seconds:.1f} s)"
    if wrong:
        return Text(f"{warned}{plural(wrong, 'problem')} to fix {seconds}.", style="bold red")
    well = f"{warned}nothing to fix: an application can start {seconds}."
    return Text(well[:1].upper() + well[1:], style="bold green")
