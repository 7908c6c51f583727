"""`checkpointing retention run`: retires old threads once, beside applications that run or without any."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.cli.configuration import Options, reading
from enhanced_checkpointing.cli.output import ExitCode, one_size, paragraph, plural, print_json, stdout
from enhanced_checkpointing.cli.threads.database import Target, config_for
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError
from enhanced_checkpointing.observability.events import Broadcast
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.threads.retention import Sweep
from enhanced_checkpointing.upkeep.assembly import assemble

TELL_EVERY = 2.0
"""Seconds between two lines of progress."""
SHOWN = 20
"""Threads that are named on a screen; with --json, a thousand."""


def run(options: Options, fields: Mapping[str, Any], *, dry_run: bool, as_json: bool) -> ExitCode:
    """Sweep once, and print what came of it."""
    configured = config_for(Target(options))
    with reading(options):  # a value out of its range is an error of usage
        config = configured.config.with_overrides(**fields)
    found = asyncio.run(_sweep(config, configured.journal_dir, dry_run=dry_run, tell=_progress()))
    if found.stopped is not None and not found.looked_at:
        raise CheckpointUnavailableError(found.stopped)
    if as_json:
        print_json(as_object(found))
    else:
        _print(found)
    return ExitCode.FINE if found.complete and not found.failed else ExitCode.WRONG


async def _sweep(
    config: CheckpointerConfig, journal_dir: Path, *, dry_run: bool, tell: Callable[[Sweep], None]
) -> Sweep:
    """Without a journal of its own, and without setting anything up: only what is there is looked at."""
    config = config.with_overrides(journal="off", journal_dir=journal_dir, retention="off")
    telemetry, serializer = Broadcast([]), SharingSerializer(config.serde)
    async with AsyncExitStack() as stack:
        backend = find_backend(config.backend_name)(config, serializer)
        stack.push_async_callback(backend.close)
        await backend.open()
        parts = await assemble(
            stack,
            config=config,
            backend=backend,
            journal=None,
            serializer=serializer,
            telemetry=telemetry,
            note=Notes(config, backend.database_id(), telemetry),
        )
        return await parts.sweeper.run(dry_run=dry_run, tell=tell)


def _progress() -> Callable[[Sweep], None]:
    console, told_at = Console(highlight=False, stderr=True), time.monotonic()

    def tell(sweep: Sweep) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_EVERY:
            told_at = time.monotonic()
            what = f"{sweep.looked_at:,} threads looked at, {_done(sweep)}"
            console.print(Text(f"{sweep.seconds:6.1f} s  {what}", style="dim"))

    return tell


def _done(sweep: Sweep) -> str:
    return f"{sweep.deleted:,} {'to be deleted' if sweep.dry_run else 'deleted'}, {sweep.pruned:,} " + (
        "to be pruned" if sweep.dry_run else "pruned"
    )


def as_object(sweep: Sweep) -> dict[str, Any]:
    """The result as plain JSON types."""
    status = "complete" if sweep.complete and not sweep.failed else "incomplete"
    return {"status": status, **asdict(sweep), "retired": [asdict(one) for one in sweep.retired]}


def _print(sweep: Sweep) -> None:
    console = stdout()
    if not sweep.sole:
        console.print("Another process does this now, so nothing was done here.")
        return
    console.print(f"{plural(sweep.looked_at, 'thread')} looked at in {sweep.seconds:.1f} s: {_done(sweep)}")
    if sweep.checkpoints:
        console.print(f"{plural(sweep.checkpoints, 'checkpoint')}, about {one_size(sweep.size)}")
    for one in sweep.retired[:SHOWN]:
        style = "bold red" if one.outcome == "failed" else "yellow"
        would = "would be " if sweep.dry_run and one.outcome != "failed" else ""
        paragraph(console, Text(f"  {would}{one.outcome:<8}", style=style), f"{one.thread_id}: {one.reason}")
    rest = sweep.deleted + sweep.pruned + sweep.failed - min(len(sweep.retired), SHOWN)
    if rest:
        console.print(Text(f"  and {rest:,} more", style="dim"))
    for reason, count in sorted(sweep.kept.items(), key=lambda item: -item[1]):
        paragraph(console, Text(f"  kept {count:>7,}  ", style="green"), reason)
    if sweep.stopped is not None:
        paragraph(console, Text("  stopped ", style="bold red"), f"{sweep.stopped} Run it again for the rest.")
