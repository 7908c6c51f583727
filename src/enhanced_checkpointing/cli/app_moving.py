"""The commands that move threads: their options and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.options import ELSEWHERE, ID, PROFILE, URL, Serde, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

moving = typer.Typer()

KINDS = "a URL (postgresql://… or sqlite:///path), the path of a SQLite file, or env for the one that the environment "
KINDS += f"configures; {ELSEWHERE}"

Source = Annotated[str, typer.Argument(help=f"Where the threads are: {KINDS}.", show_default=False), URL]
Target = Annotated[str, typer.Argument(help=f"Where they go: {KINDS}.", show_default=False), URL]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace threads of which the target has something else, or something newer."),
]
Concurrency = Annotated[int, typer.Option(min=1, max=100, help="Threads that are moved at a time.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing while it goes well.")]


@command(moving, takes=PROFILE)
def migrate(
    options: Options,
    as_json: bool,
    source: Source,
    target: Target,
    dry_run: DryRun = False,
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Only compare the two.")] = False,
    overwrite: Overwrite = False,
    concurrency: Concurrency = 4,
    serde: Serde = None,
    quiet: Quiet = False,
) -> ExitCode:
    """Bring every thread of one database into another, and compare the two.

    Stop it and run it again at any time: what is there already is compared and left alone.

    What the source gets meanwhile may be missed: stop the application first, or run this again for the rest.

    A thread that has gone on in the target is refused, not overwritten, unless --overwrite says so.

    Exit code 0: the target has every thread of the source, and equal. 1: it has not; they are named. 2: not possible.
    """
    from enhanced_checkpointing.cli import moving as work
    from enhanced_checkpointing.cli.database import Naming
    from enhanced_checkpointing.threads.migrate import Orders

    if verify_only and (dry_run or overwrite):
        raise typer.BadParameter("--verify-only changes nothing: it goes with neither --dry-run nor --overwrite")
    naming = Naming(options.environment, options.env_file, serde, concurrency)
    orders = Orders(overwrite=overwrite, rehearse=dry_run, compare_only=verify_only)
    showing = work.Showing(as_json, quiet)
    return work.run_migrate(source, target, naming, orders, showing)


@command(moving, takes=PROFILE)
def export(
    options: Options,
    as_json: bool,
    source: Source,
    file: Annotated[str, typer.Argument(help="The file to make, or - for standard output.", show_default=False)],
    thread: Annotated[
        list[str] | None,
        typer.Option(help="Only the thread with this id; may be given again.", show_default=False),
        ID,
    ] = None,
    serde: Serde = None,
    quiet: Quiet = False,
) -> ExitCode:
    """Write threads as JSON lines, which people can read and `import` takes exactly as they were.

    With - as the file, what is said of it goes to stderr. What the source gets meanwhile may be missed.

    Exit code 0: all is written. 1: some threads cannot be read; they are named. 2: wrong usage, or not possible.
    """
    from enhanced_checkpointing.cli import moving as work
    from enhanced_checkpointing.cli.database import Naming

    naming, showing = Naming(options.environment, options.env_file, serde), work.Showing(as_json, quiet)
    return work.run_export(source, file, thread or (), naming, showing)


@command(moving, "import", takes=PROFILE)
def import_(
    options: Options,
    as_json: bool,
    file: Annotated[str, typer.Argument(help="What was exported, or - for standard input.", show_default=False)],
    target: Target,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    concurrency: Concurrency = 4,
    serde: Serde = None,
    quiet: Quiet = False,
) -> ExitCode:
    """Bring the threads of an export into a database. Stop it and run it again at any time.

    A thread with a damaged line is left out, and the line is named. One that has gone on in the target is refused.

    Exit code 0: the target has every thread of the export, and equal. 1: it has not; they are named. 2: not possible.
    """
    from enhanced_checkpointing.cli import moving as work
    from enhanced_checkpointing.cli.database import Naming
    from enhanced_checkpointing.threads.migrate import Orders

    naming, showing = Naming(options.environment, options.env_file, serde, concurrency), work.Showing(as_json, quiet)
    orders = Orders(overwrite=overwrite, rehearse=dry_run)
    return work.run_import(file, target, naming, orders, showing)
