"""What is wrong or odd in the settings, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv import dotenv_values

from enhanced_checkpointing.cli.configuration import DEFAULT, Options, Reading
from enhanced_checkpointing.cli.findings import Finding, failed, fine, warning
from enhanced_checkpointing.cli.screen import listed
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.settings import unknown_variables

__all__ = ["check_settings"]

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
