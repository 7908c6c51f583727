"""What is wrong or odd in the settings, on this machine, and on the way to a collector of telemetry."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from packaging.requirements import Requirement

from enhanced_checkpointing.cli.configuration import DEFAULT, INSTALL_PSYCOPG, Options, Reading
from enhanced_checkpointing.cli.output import Finding, failed, fine, warning
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import listed
from enhanced_checkpointing.settings import unknown_variables

OURS = ("DATABASE_URL", "POSTGRES_URL", "DEV_USE_SQLITE", "SQLITE_PATH")


def check_settings(read: Reading, options: Options) -> list[Finding]:
    """All findings on what was read."""
    found = [*_faults(read), *_unknown(read.environment), *_unread_file(options, Path(".env"))]
    if read.config is not None:
        found += [*_primary(read.config, read), *_journal(read.config), *_times(read.config)]
    return found or [fine("settings", f"{len(read.settings)} settings fit.")]


def _faults(read: Reading) -> Iterator[Finding]:
    for fault in read.faults:
        what, _, fix = fault.partition(". Fix: ")
        name = what.partition(":")[0].partition(" ")[0]
        yield failed(
            f"settings.{name}",
            what if what.endswith(".") else f"{what}.",
            "An application that starts now is refused its start. Nothing else is looked at before this is mended.",
            fix[:1].upper() + fix[1:] or "Correct the setting.",
        )


def _unknown(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, closest in unknown_variables(environment):
        yield warning(
            f"settings.{name}",
            f"{name} is set, and there is no such setting.",
            "It has no effect: the setting that was meant is at its default.",
            f"The closest one is {closest}: rename it, or remove it.",
            closest=closest,
        )


def _unread_file(options: Options, file: Path) -> Iterator[Finding]:
    """A `.env` file beside us that nobody has loaded."""
    if options.env_file is not None or not os.access(file, os.R_OK):
        return
    names = [
        name
        for name, value in dotenv_values(file).items()
        if value and (name in OURS or name.startswith("CHECKPOINT_")) and os.environ.get(name) != value
    ]
    if names:
        yield warning(
            "settings.env_file",
            f"The file .env here sets {listed(names)}, which the environment does not.",
            "The library reads no .env file: these values count only where something has loaded them before.",
            "Start this command with --env-file .env to see what an application with that file sees.",
            variables=names,
        )


def _primary(config: CheckpointerConfig, read: Reading) -> Iterator[Finding]:
    by_name = {setting.name: setting for setting in read.settings}
    if not config.enabled:
        yield warning(
            "settings.enabled",
            "CHECKPOINT_ENABLED=false: no checkpointer is handed out.",
            "Graphs run without persistence: a conversation ends with its process.",
            "Remove the variable where conversations are to be kept.",
        )
    if config.environment != "production":
        return
    if config.backend_name == "sqlite" and by_name["checkpointer_type"].source == "profile":
        report = failed if by_name["database_path"].source == DEFAULT else warning
        yield report(
            "settings.database_url",
            "The environment is production, and neither DATABASE_URL nor POSTGRES_URL is set.",
            f"Checkpoints go to the SQLite file {config.database_path}, which other machines do not see, and which is "
            "lost with this disk.",
            "Set DATABASE_URL; or, if one machine is all there is, set SQLITE_PATH to where the file should be.",
        )


def _journal(config: CheckpointerConfig) -> Iterator[Finding]:
    if config.backend_name == "memory" or not config.enabled:
        return
    if config.journal == "durable" and config.on_outage == "journal":
        return
    why = "CHECKPOINT_ON_OUTAGE=raise" if config.on_outage == "raise" else f"CHECKPOINT_JOURNAL={config.journal}"
    lost = config.journal == "memory" and config.on_outage == "journal"
    yield warning(
        "settings.journal",
        f"{why}: no write of an outage is kept on a disk.",
        "What is acknowledged in an outage is lost when the process ends before the database is back."
        if lost
        else "Every write of an outage is refused, and the graph that makes it fails.",
        "Leave the setting out, so that writes are journaled on a disk, unless this is what you want.",
    )


def _times(config: CheckpointerConfig) -> Iterator[Finding]:
    if config.probe_interval > 60:
        yield warning(
            "settings.probe_interval",
            f"CHECKPOINT_PROBE_INTERVAL is {config.probe_interval:g} s.",
            "An idle application learns that late that its database is down, or that its journal cannot be written.",
            "5 s is the default; a probe costs one small transaction.",
        )


DISTRIBUTION = "enhanced-checkpointing"

SHOWN = ("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite", "langgraph-checkpoint-postgres", "psycopg")

BUILT_AFTER = 1_735_689_600.0
"""2025-01-01: a clock before that was never set."""


def check_machine(config: CheckpointerConfig | None) -> list[Finding]:
    """All checks, on this machine."""
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        required = []
    found = [*check_python(sys.version_info[:3]), *check_packages(required, _installed)]
    if config is not None and config.backend_name == "postgres":
        found += [*check_psycopg(importlib.import_module), *check_event_loop(sys.platform, config)]
    return [*found, *check_local_clock(time.time, time.monotonic)]


def check_python(version: Sequence[int]) -> Iterator[Finding]:
    text = ".".join(map(str, version))
    if tuple(version[:2]) < (3, 11):
        yield failed("machine.python", f"Python {text} is too old.", "It does not work.", "Use Python 3.11 or newer.")
    else:
        yield fine("machine.python", f"Python {text}.", version=text)


def check_packages(required: Sequence[str], installed: Callable[[str], str | None]) -> Iterator[Finding]:
    """Whether what is installed is within the bounds that this release was made for."""
    wanted = {
        found.name: found for found in map(Requirement, required) if not (found.marker and "extra" in str(found.marker))
    }
    versions = {name: installed(name) for name in wanted}
    for name, requirement in wanted.items():
        version = versions[name]
        if version is None:
            yield failed(
                "machine.packages",
                f"{name} is not installed.",
                "What needs it cannot be imported: an application that starts now is refused its start.",
                INSTALL_PSYCOPG if name == "psycopg" else f'pip install "{name}{requirement.specifier}"',
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            yield failed(
                "machine.packages",
                f"{name} {version} is installed; this release works with {requirement.specifier}.",
                "Its private parts may have changed: calls may fail, or worse, do something else.",
                f'pip install "{name}{requirement.specifier}"',
                version=version,
            )
    shown = {name: versions[name] for name in SHOWN if versions.get(name)}
    yield fine("machine.versions", ", ".join(f"{name} {version}" for name, version in shown.items()) + ".", **shown)


def check_psycopg(load: Callable[[str], object]) -> Iterator[Finding]:
    try:
        load("psycopg")
        load("psycopg_pool")
    except ImportError as error:
        yield failed(
            "machine.psycopg",
            f"psycopg, the driver of PostgreSQL, cannot be imported: {' '.join(str(error).split())}.",
            "An application that starts now is refused its start.",
            f"{INSTALL_PSYCOPG} (the extra `binary` brings libpq along).",
        )


def check_event_loop(platform: str, config: CheckpointerConfig) -> Iterator[Finding]:
    if platform == "win32" and config.enable_async:
        yield warning(
            "machine.event_loop",
            "Windows' default event loop (Proactor) cannot run psycopg.",
            "An application that starts on it is refused its start.",
            "Before the loop starts: asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy()); or "
            "enable_async=False.",
        )
    else:
        yield fine("machine.event_loop", "The default event loop can run psycopg.")


def check_local_clock(wall_clock: Callable[[], float], monotonic: Callable[[], float]) -> Iterator[Finding]:
    if wall_clock() < BUILT_AFTER:
        today = time.strftime("%Y-%m-%d", time.gmtime(wall_clock()))
        yield failed(
            "machine.clock",
            f"This machine thinks that it is {today}.",
            "The ids of checkpoints are ordered by the clock: new ones would count as older than those that are there.",
            "Set the clock, and keep it set (NTP, chrony).",
        )
    first = monotonic()
    if monotonic() < first:
        yield failed(
            "machine.monotonic",
            "The clock that must never go back does.",
            "Deadlines cannot be kept.",
            "Look for a fault of the virtual machine's clock source.",
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


NAME = "telemetry"
DEFAULT_PORTS = {"http": 80, "https": 443}
NO_TRACE = "Spans and metrics are not sent. Checkpoints are not affected."


def endpoint_of(environment: Mapping[str, str]) -> str:
    """The collector that the variables name; empty if none does."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    return next((environment[name] for name in names if environment.get(name)), "")


def check_telemetry(environment: Mapping[str, str], reached: Callable[[str, int], str]) -> Finding:
    """Whether the collector can be reached; `reached(host, port)` says why it cannot, or nothing."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return fine(NAME, "Telemetry is off (OTEL_SDK_DISABLED=true).")
    endpoint = endpoint_of(environment)
    if not endpoint:
        return fine(
            NAME, "No collector is named (OTEL_EXPORTER_OTLP_ENDPOINT): nothing is sent by configure_telemetry()."
        )
    if (found := _unusable(environment)) is not None:
        return found
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:  # its words may quote what was meant as a password
        parts, host, port = urlsplit(""), "", 0
    if not host or not port:
        fix = "Give http://host:4318 or https://host."
        return failed(NAME, "The collector's endpoint is no URL (OTEL_EXPORTER_OTLP_ENDPOINT).", NO_TRACE, fix)
    if error := reached(host, port):
        return warning(
            NAME,
            f"The collector at {host}:{port} cannot be reached: {error}.",
            NO_TRACE,
            "Start it, or correct OTEL_EXPORTER_OTLP_ENDPOINT; over HTTP its port is 4318.",
        )
    return fine(NAME, f"The collector at {host}:{port} listens.", endpoint=f"{parts.scheme}://{host}:{port}")


def _unusable(environment: Mapping[str, str]) -> Finding | None:
    """What `configure_telemetry()` would refuse."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol.strip().lower() != "http/protobuf":
        return failed(
            NAME,
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not spoken here.",
            "configure_telemetry() raises an error.",
            "Set it to http/protobuf, and let the endpoint name the collector's HTTP port (4318).",
        )
    if importlib.util.find_spec("opentelemetry.exporter.otlp") is None:
        return failed(
            NAME,
            "A collector is named, and the exporter is not installed.",
            "configure_telemetry() raises an error.",
            'pip install "enhanced-checkpointing[otlp]"',
        )
    return None
