"""The commands of `checkpointing threads`: their options and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.options import DATABASE, DATABASE_AND_JOURNAL, ID, Serde, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

threads = typer.Typer(
    no_args_is_help=True,
    help="What the database holds of conversations. They work while the application runs. Exit codes: 0 fine, 1 there "
    "is no such thread or checkpoint, or it was refused, 2 wrong usage or not possible to find out.",
)

Thread = Annotated[str, typer.Argument(help="The id of the thread.", show_default=False), ID]
Threads = Annotated[list[str], typer.Argument(metavar="THREAD...", help="Ids of threads.", show_default=False), ID]
Namespace = Annotated[
    str, typer.Option(metavar="NS", help="The namespace of a subgraph, as `show` names them.", show_default=False), ID
]
User = Annotated[
    str | None,
    typer.Option(help="As this user: the threads of other owners do not exist.", show_default=False),
    ID,
]
Full = Annotated[bool, typer.Option("--full", help="Shorten nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@command(threads, "list", takes=DATABASE)
def list_(
    options: Options,
    as_json: bool,
    user: Annotated[str | None, typer.Option(help="Only the threads of this user.", show_default=False), ID] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    before: Annotated[
        str | None, typer.Option(help="The next page, as the page before says it.", show_default=False)
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only threads with this metadata; JSON, else a text. May be given again.",
            show_default=False,
        ),
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only threads that are active, completed or failed.", show_default=False)
    ] = None,
) -> ExitCode:
    """List threads, newest first."""
    from enhanced_checkpointing.cli.threads import list as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, user=user)
    wanted = work.Wanted(user, limit, before, tuple(metadata or ()), status)
    return work.run(target, wanted, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def show(
    options: Options,
    as_json: bool,
    thread: Thread,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="ID", help="This checkpoint, by the beginning of its id.", show_default=False),
    ] = None,
    namespace: Namespace = "",
    full: Full = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Show the state of a conversation: its messages, what it waits for, and what comes next.

    Nothing of the application is imported or run, unless --serde names it.
    """
    from enhanced_checkpointing.cli.threads import show as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, serde, user)
    return work.run(target, thread, checkpoint=checkpoint, namespace=namespace, full=full, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def history(
    options: Options,
    as_json: bool,
    thread: Thread,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many checkpoints at most.")] = 50,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="The next page, as the page before says it.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those of subgraphs, too.")] = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Draw the tree of a thread's checkpoints with its forks, newest first."""
    from enhanced_checkpointing.cli.threads import history as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, serde, user)
    return work.run(target, thread, limit=limit, before=before, every=every, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def diff(
    options: Options,
    as_json: bool,
    thread: Thread,
    first: Annotated[
        str | None,
        typer.Argument(metavar="[A]", help="A checkpoint, or a range: A..B, or A.. to the newest.", show_default=False),
    ] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="The other one. Default: A from its parent.", show_default=False)
    ] = None,
    namespace: Namespace = "",
    full: Full = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Show what changed between two checkpoints; without any, between the newest and its parent.

    Ids may be shortened, as `history` shows them.
    """
    from enhanced_checkpointing.cli.threads import diff as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, serde, user)
    return work.run(target, thread, work.range_of(first, second), namespace=namespace, full=full, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def delete(
    options: Options,
    as_json: bool,
    threads: Threads,
    yes: Yes = False,
    user: User = None,
) -> ExitCode:
    """Delete threads with everything that is stored of them. Refused while the journal holds anything of one."""
    from enhanced_checkpointing.cli.threads import change as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, user=user)
    return work.delete(target, threads, yes=yes, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def copy(
    options: Options,
    as_json: bool,
    source: Annotated[str, typer.Argument(help="The thread to copy.", show_default=False), ID],
    target: Annotated[
        str | None,
        typer.Argument(help="The id of the copy. Default: a new one, which is printed.", show_default=False),
        ID,
    ] = None,
    user: User = None,
) -> ExitCode:
    """Copy a thread, all of it or nothing. Refused while the journal holds anything of it."""
    from enhanced_checkpointing.cli.threads import change as work
    from enhanced_checkpointing.cli.threads.database import Target

    database = Target(options, user=user)
    return work.copy(database, source, target, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def prune(
    options: Options,
    as_json: bool,
    threads: Threads,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest checkpoints stay in each namespace.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    yes: Yes = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Make threads small: only the newest checkpoints stay, and what they are rebuilt from.

    Refused while the journal holds anything of one of them.
    """
    from enhanced_checkpointing.cli.threads import change as work
    from enhanced_checkpointing.cli.threads.database import Target

    target = Target(options, serde, user)
    return work.prune(target, threads, keep=keep, dry_run=dry_run, yes=yes, as_json=as_json)
