"""The commands of `checkpointing retention`: their options and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.options import DATABASE_AND_JOURNAL, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

retention = typer.Typer(no_args_is_help=True, help="Old threads: which ones go, and when.")

Days = Annotated[float | None, typer.Option(min=0.0, help="Days, instead of what the environment says.")]


@retention.callback()
def _commands() -> None:
    """Old threads: which ones go, and when."""


@command(retention, takes=DATABASE_AND_JOURNAL)
def run(
    options: Options,
    as_json: bool,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    active_days: Days = None,
    completed_days: Days = None,
    failed_days: Days = None,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Newest checkpoints that stay of a thread that is kept, instead.", show_default=False),
    ] = None,
) -> ExitCode:
    """Look at every thread once: delete the old ones, and shorten the others if --keep or the environment says so.

    A thread that waits for somebody stays, as does one of which the journal holds anything. Applications may run.

    Stop it and run it again at any time. Where an application is just doing this itself, nothing is done.

    Exit code 0: every thread was looked at. 1: not all could be, or another process is at it. 2: not possible.
    """
    from enhanced_checkpointing.cli import retention as work

    wanted = {
        "retention_active_days": active_days,
        "retention_completed_days": completed_days,
        "retention_failed_days": failed_days,
        "retention_keep": keep,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return work.run(options, given, dry_run=dry_run, as_json=as_json)
