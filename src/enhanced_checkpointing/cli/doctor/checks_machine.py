"""The machine and what is installed on it: Python, packages, event loop, clock. Each check is told what it looks at."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement

from enhanced_checkpointing.cli.configuration import INSTALL_PSYCOPG
from enhanced_checkpointing.cli.findings import Finding, failed, fine, warning
from enhanced_checkpointing.config import CheckpointerConfig

__all__ = ["check_machine"]

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
