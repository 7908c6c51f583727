"""The commands of `checkpointing audit`: their options and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.options import ID, JOURNAL, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

audit = typer.Typer(no_args_is_help=True, help="Who deleted, erased, imported or exported which threads, and when.")


@command(audit, takes=JOURNAL)
def show(
    options: Options,
    as_json: bool,
    thread: Annotated[str | None, typer.Option(help="Only what names this thread.", show_default=False), ID] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    before: Annotated[
        int | None, typer.Option(help="The next page, as the page before says it.", show_default=False)
    ] = None,
) -> ExitCode:
    """Show the audit trail, newest first."""
    from enhanced_checkpointing.cli import audit as work

    return work.show(options, thread, limit=limit, before=before, as_json=as_json)


@command(audit, takes=JOURNAL)
def verify(
    options: Options,
    as_json: bool,
    known: Annotated[
        str | None, typer.Option(metavar="HASH", help="An entry that was there before.", show_default=False)
    ] = None,
) -> ExitCode:
    """Look whether every entry is as it was written, and none is missing.

    Exit code 0: it is whole. 1: it is not; the first broken line is named. 2: not possible to find out.
    """
    from enhanced_checkpointing.cli import audit as work

    return work.verify(options, known, as_json=as_json)
