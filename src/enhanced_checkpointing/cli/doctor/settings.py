"""What is wrong or odd in the settings, on this machine, and on the way to a collector of telemetry."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from packaging.requirements import Requirement

from enhanced_checkpointing.cli.configuration import DEFAULT, INSTALL_PSYCOPG, Options, Reading
from enhanced_checkpointing.cli.doctor.checks import NO_START, Answer, Checks, Finding, failed, fine, warning
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import listed
from enhanced_checkpointing.settings import unknown_variables

OURS = ("DATABASE_URL", "POSTGRES_URL", "DEV_USE_SQLITE", "SQLITE_PATH")

reading_checks: Checks[Reading, Options] = Checks()
"""They need no configuration: it may be what is wrong."""
checks: Checks[CheckpointerConfig, Reading] = Checks()


def judge(read: Reading, options: Options) -> list[Finding]:
    """All findings on what was read."""
    found = reading_checks.judge(read, options)
    if read.config is not None:
        found += checks.judge(read.config, read)
    return found or [fine(f"{len(read.settings)} settings fit.", name="settings")]


@reading_checks("settings", "Do the settings fit?")
def faults(read: Reading, options: Options) -> Iterator[Finding]:
    for fault in read.faults:
        what, _, fix = fault.partition(". Fix: ")
        yield failed(
            what if what.endswith(".") else f"{what}.",
            f"{NO_START} Nothing else is checked before this is fixed.",
            fix[:1].upper() + fix[1:] or "Correct the setting.",
            name=f"settings.{what.partition(':')[0].partition(' ')[0]}",
        )


@reading_checks("settings.unknown", "Is every variable that begins with CHECKPOINT_ a setting?")
def unknown(read: Reading, options: Options) -> Iterator[Finding]:
    for name, closest in unknown_variables(read.environment):
        yield warning(
            f"{name} is set, and there is no such setting.",
            "It has no effect: the intended setting is at its default.",
            f"The closest one is {closest}: rename it, or remove it.",
            name=f"settings.{name}",
            closest=closest,
        )


@reading_checks("settings.env_file", "Is there a .env file here that nothing has loaded?")
def unread_file(read: Reading, options: Options) -> Answer:
    file = Path(".env")
    if options.env_file is not None or not os.access(file, os.R_OK):
        return None
    names = [
        name
        for name, value in dotenv_values(file).items()
        if value and (name in OURS or name.startswith("CHECKPOINT_")) and os.environ.get(name) != value
    ]
    if not names:
        return None
    return warning(
        f"The file .env here sets {listed(names)}, which the environment does not.",
        "The library reads no .env file: these values count only where something has loaded them before.",
        "Run this command with --env-file .env to see what an application with that file sees.",
        variables=names,
    )


@checks("settings.enabled", "Is a checkpointer handed out at all?")
def enabled(config: CheckpointerConfig, read: Reading) -> Answer:
    if config.enabled:
        return None
    return warning(
        "CHECKPOINT_ENABLED=false: no checkpointer is handed out.",
        "Graphs run without persistence: a conversation ends with its process.",
        "Remove the variable where conversations are to be kept.",
    )


@checks("settings.database_url", "Does production have a database?")
def database_url(config: CheckpointerConfig, read: Reading) -> Answer:
    source = {setting.name: setting.source for setting in read.settings}
    if (
        config.environment != "production"
        or config.backend_name != "sqlite"
        or source["checkpointer_type"] != "profile"
    ):
        return None
    report = failed if source["database_path"] == DEFAULT else warning
    return report(
        "The environment is production, and neither DATABASE_URL nor POSTGRES_URL is set.",
        f"Checkpoints go to the SQLite file {config.database_path}, which other machines do not see, and which is lost "
        "with this disk.",
        "Set DATABASE_URL; or, if one machine is enough, set SQLITE_PATH to where the file should be.",
    )


@checks("settings.journal", "Are the writes of an outage kept on a disk?")
def journal(config: CheckpointerConfig, read: Reading) -> Answer:
    if config.backend_name == "memory" or not config.enabled:
        return None
    if config.journal == "durable" and config.on_outage == "journal":
        return None
    why = "CHECKPOINT_ON_OUTAGE=raise" if config.on_outage == "raise" else f"CHECKPOINT_JOURNAL={config.journal}"
    lost = config.journal == "memory" and config.on_outage == "journal"
    return warning(
        f"{why}: no write of an outage is kept on a disk.",
        "What is acknowledged in an outage is lost if the process ends before the database is back."
        if lost
        else "Every write of an outage is refused, and its graph fails.",
        "Remove the setting, so that writes are journaled on a disk, unless this is what you want.",
    )


@checks("settings.probe_interval", "Does an idle application notice an outage soon?")
def probe_interval(config: CheckpointerConfig, read: Reading) -> Answer:
    if config.probe_interval <= 60:
        return None
    return warning(
        f"CHECKPOINT_PROBE_INTERVAL is {config.probe_interval:g} s.",
        "An idle application learns that late that its database is down, or that its journal cannot be written.",
        "5 s is the default; a probe costs one small transaction.",
    )


# The machine, and what is installed on it

SHOWN = ("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "psycopg")
BUILT_AFTER = 1_735_689_600.0
"""2025-01-01: a clock before that was never set."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks look at; `required` are the requirements of this release, `clocks` two readings of a clock that
    never goes back."""

    python: Sequence[int] = sys.version_info[:3]
    platform: str = sys.platform
    required: Sequence[str] = ()
    installed: Mapping[str, str | None] = field(default_factory=dict)
    driver_error: str = ""
    now: float = BUILT_AFTER
    clocks: tuple[float, float] = (0.0, 0.0)


machine_checks: Checks[Machine, CheckpointerConfig | None] = Checks()


def ask_machine() -> Machine:
    """This machine."""
    try:
        required = metadata.requires("enhanced-checkpointing") or []
    except metadata.PackageNotFoundError:
        required = []
    installed = {name: _version(name) for name in map(_name, required)}
    driver_error = ""
    try:
        for name in ("psycopg", "psycopg_pool"):
            importlib.import_module(name)
    except ImportError as error:
        driver_error = " ".join(str(error).split())
    return Machine(
        required=required,
        installed=installed,
        driver_error=driver_error,
        now=time.time(),
        clocks=(time.monotonic(), time.monotonic()),
    )


def _name(requirement: str) -> str:
    return Requirement(requirement).name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@machine_checks("machine.python", "Is Python new enough?")
def python(machine: Machine, config: CheckpointerConfig | None) -> Answer:
    text = ".".join(map(str, machine.python))
    if tuple(machine.python[:2]) < (3, 11):
        return failed(f"Python {text} is too old.", "It does not work.", "Use Python 3.11 or newer.")
    return fine(f"Python {text}.", version=text)


@machine_checks("machine.packages", "Are the installed packages those that this release was made for?")
def packages(machine: Machine, config: CheckpointerConfig | None) -> Iterator[Finding]:
    wanted = [found for found in map(Requirement, machine.required) if "extra" not in str(found.marker or "")]
    for requirement in wanted:
        name, version = requirement.name, machine.installed.get(requirement.name)
        install = f'pip install "{name}{requirement.specifier}"'
        if version is None:
            fix = INSTALL_PSYCOPG if name == "psycopg" else install
            yield failed(f"{name} is not installed.", f"What needs it cannot be imported. {NO_START}", fix)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield failed(
                f"{name} {version} is installed; this release works with {requirement.specifier}.",
                "Its private parts may have changed: calls may fail, or worse, do something else.",
                install,
                version=version,
            )
    shown = {name: version for name in SHOWN if (version := machine.installed.get(name))}
    what = ", ".join(f"{name} {version}" for name, version in shown.items())
    yield fine(f"{what}.", name="machine.versions", **shown)


@machine_checks("machine.psycopg", "Can the driver of PostgreSQL be imported?")
def psycopg(machine: Machine, config: CheckpointerConfig | None) -> Answer:
    if not machine.driver_error or config is None or config.backend_name != "postgres":
        return None
    what = f"psycopg, the driver of PostgreSQL, cannot be imported: {machine.driver_error}."
    return failed(what, NO_START, f"{INSTALL_PSYCOPG} (the extra `binary` brings libpq along).")


@machine_checks("machine.event_loop", "Can the default event loop run the driver?")
def event_loop(machine: Machine, config: CheckpointerConfig | None) -> Answer:
    if config is None or config.backend_name != "postgres":
        return None
    if machine.platform != "win32" or not config.enable_async:
        return fine("The default event loop can run psycopg.")
    return warning(
        "Windows' default event loop (Proactor) cannot run psycopg.",
        "An application that starts on it is refused its start.",
        "Before the loop starts: asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy()); or "
        "enable_async=False.",
    )


@machine_checks("machine.clock", "Was this machine's clock ever set, and does it only go forward?")
def clock(machine: Machine, config: CheckpointerConfig | None) -> Iterator[Finding]:
    if machine.now < BUILT_AFTER:
        yield failed(
            f"This machine's date is {time.strftime('%Y-%m-%d', time.gmtime(machine.now))}.",
            "The ids of checkpoints are ordered by the clock: new ones would count as older than the stored ones.",
            "Set the clock, and keep it set (NTP, chrony).",
        )
    if machine.clocks[1] < machine.clocks[0]:
        yield failed(
            "The clock that must never go back does.",
            "Deadlines cannot be kept.",
            "Look for a fault of the virtual machine's clock source.",
            name="machine.monotonic",
        )


# Telemetry

DEFAULT_PORTS = {"http": 80, "https": 443}
NOT_SENT = "Spans and metrics are not sent. Checkpoints are not affected."
Reach = Callable[[str, int], str]
"""Why a host and port cannot be reached; empty if they can."""

telemetry_checks: Checks[Mapping[str, str], Reach] = Checks()


@telemetry_checks("telemetry", "Does the collector of telemetry listen?")
def collector(environment: Mapping[str, str], reach: Reach) -> Answer:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return fine("Telemetry is off (OTEL_SDK_DISABLED=true).")
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    endpoint = next((environment[name] for name in names if environment.get(name)), "")
    if not endpoint:
        return fine("No collector is named (OTEL_EXPORTER_OTLP_ENDPOINT): configure_telemetry() sends nothing.")
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol.strip().lower() != "http/protobuf":
        return failed(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported.",
            "configure_telemetry() raises an error.",
            "Set it to http/protobuf, and let the endpoint name the collector's HTTP port (4318).",
        )
    if importlib.util.find_spec("opentelemetry.exporter.otlp") is None:
        return failed(
            "A collector is named, and the exporter is not installed.",
            "configure_telemetry() raises an error.",
            'pip install "enhanced-checkpointing[otlp]"',
        )
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:  # its words may quote what was meant as a password
        parts, host, port = urlsplit(""), "", 0
    if not host or not port:
        what = "The collector's endpoint is no URL (OTEL_EXPORTER_OTLP_ENDPOINT)."
        return failed(what, NOT_SENT, "Give http://host:4318 or https://host.")
    if error := reach(host, port):
        return warning(
            f"The collector at {host}:{port} cannot be reached: {error}.",
            NOT_SENT,
            "Start it, or correct OTEL_EXPORTER_OTLP_ENDPOINT; over HTTP its port is 4318.",
        )
    return fine(f"The collector at {host}:{port} listens.", endpoint=f"{parts.scheme}://{host}:{port}")
