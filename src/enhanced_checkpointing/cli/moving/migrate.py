"""`checkpointing migrate`: brings every thread of one database into another, and compares the two."""

from __future__ import annotations

import asyncio

from enhanced_checkpointing.cli.audit import note
from enhanced_checkpointing.cli.configuration import UsageError
from enhanced_checkpointing.cli.findings import ExitCode
from enhanced_checkpointing.cli.moving.journaled import journaled_for, looked_again
from enhanced_checkpointing.cli.moving.progress import (
    Showing,
    as_object,
    following,
    show_journaled,
    show_outcomes,
    show_problems,
)
from enhanced_checkpointing.cli.named_databases import Naming, home, opened_for_rehearsal, opened_source, opened_target
from enhanced_checkpointing.cli.screen import print_json, stdout
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.threads.migrate import Tally, count_threads, migrate
from enhanced_checkpointing.threads.moving import Orders

__all__ = ["run"]


def run(source: str, target: str, naming: Naming, orders: Orders, showing: Showing) -> ExitCode:
    """Migrate, print, and tell whether the two are the same."""
    configs = naming.config(source), naming.config(target)
    homes = home(configs[0]), home(configs[1])
    if homes[0] == homes[1]:
        raise UsageError(f"Source and target are the same database, {homes[0]}. Nothing was changed.")
    place = naming.journal()
    before = journaled_for(homes[0], place)  # what cannot be read is better known before hours of work than after
    tally = asyncio.run(_migrated(*configs, naming.concurrency, orders, showing))
    if not (orders.rehearse or orders.compare_only):
        note(place.directory, homes[1], "migrate", source=homes[0], migrated=tally.threads)
    journaled = looked_again(before, homes[0], place)
    complete = tally.complete and journaled.complete
    if showing.as_json:
        print_json(as_object(tally, journaled, source=homes[0], target=homes[1], rehearsal=orders.rehearse))
    elif not (showing.quiet and complete):
        _show(tally, homes, orders)
        show_journaled(stdout(), journaled)
    return ExitCode.FINE if complete else ExitCode.WRONG


async def _migrated(
    from_config: CheckpointerConfig, to_config: CheckpointerConfig, concurrency: int, orders: Orders, showing: Showing
) -> Tally:
    if orders.compare_only:
        opening = opened_source(to_config, "target")
    else:
        opening = opened_for_rehearsal(to_config) if orders.rehearse else opened_target(to_config)
    async with opened_source(from_config) as source, opening as target:
        total = None if showing.quiet else await count_threads(source)
        with following(_doing(orders), total, quiet=showing.quiet) as tell:
            return await migrate(source, target, orders, concurrency=concurrency, tell=tell)


def _doing(orders: Orders) -> str:
    if orders.compare_only:
        return "compared"
    return "looked at" if orders.rehearse else "moved"


def _show(tally: Tally, homes: tuple[str, str], orders: Orders) -> None:
    console = stdout()
    console.print(f"from {homes[0]}", markup=False, soft_wrap=True)
    console.print(f"to   {homes[1]}", markup=False, soft_wrap=True)
    show_outcomes(console, tally)
    show_problems(console, tally)
    if orders.rehearse:
        console.print("This was a rehearsal: nothing was changed.")
    elif tally.complete:
        console.print("Every thread of the source was read from both sides, and they are equal.", style="bold green")
    else:
        console.print("Not complete: the threads above are not the same on both sides.", style="bold red")
