"""The commands of `checkpointing journal`: their options and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.options import DATABASE_AND_JOURNAL, ID, JOURNAL, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

journal = typer.Typer(
    no_args_is_help=True,
    help="What was acknowledged in outages and is not in the database yet. Exit codes: 0 fine, 1 something waits, was "
    "refused or is damaged, 2 wrong usage or not possible to find out.",
)

Timeout = Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds to drain for at most.")]


@command(journal, takes=JOURNAL)
def status(options: Options, as_json: bool) -> ExitCode:
    """Show every book in the directory: whose it is, and what waits in it. Nothing is changed."""
    from enhanced_checkpointing.cli import journal as work

    return work.show_status(options, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def drain(
    options: Options,
    as_json: bool,
    timeout: Timeout = 600.0,
) -> ExitCode:
    """Bring what ended processes left to the database. Exit code 0 only when nothing waits in the directory any more.

    What running processes hold is theirs: it is left alone, and told.
    """
    from enhanced_checkpointing.cli import drain as work

    return work.drain(options, timeout=timeout, as_json=as_json)


@command(journal, "dead-letters", takes=JOURNAL)
def dead_letters(options: Options, as_json: bool) -> ExitCode:
    """List what the database refused for good: thread, operation, error. Nothing is changed."""
    from enhanced_checkpointing.cli import journal as work

    return work.show_letters(options, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def retry(
    options: Options,
    as_json: bool,
    thread_id: Annotated[str | None, typer.Argument(help="The thread.", show_default=False), ID] = None,
    every: Annotated[bool, typer.Option("--all", help="Every thread that has dead letters.")] = False,
    timeout: Timeout = 600.0,
) -> ExitCode:
    """Try the dead letters of one thread, or of all, once more, and what waits behind them.

    Exit code 0: none of them is left. 1: one was refused again. 2: there is none, or a running process holds it.
    """
    from enhanced_checkpointing.cli import drain as work

    if thread_id is not None and every:
        raise typer.BadParameter("a thread was named, and --all was given: choose one of them")
    if thread_id is None and not every:
        raise typer.BadParameter("name one thread, or give --all")
    return work.retry(options, thread_id, timeout=timeout, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def quarantine(
    options: Options,
    as_json: bool,
    copy_to: Annotated[
        Path | None, typer.Option(help="Copy what is damaged into this new folder.", show_default=False)
    ] = None,
    branches: Annotated[
        bool, typer.Option("--branches", help="Ask the database for branches of outages that were put aside, too.")
    ] = False,
) -> ExitCode:
    """Show what is damaged, which threads that freezes, and what can be done. Nothing is changed."""
    from enhanced_checkpointing.cli import journal as work

    return work.show_quarantine(options, copy_to=copy_to, branches=branches, as_json=as_json)
