"""The commands of `checkpointing threads`: their options and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from enhanced_checkpointing.cli.options import DatabaseUrl, EnvFile, Environment, JournalDir, Json, Sqlite

__all__ = ["threads"]

threads = typer.Typer(
    no_args_is_help=True,
    help="What the database holds of conversations. They work while the application runs. Exit codes: 0 fine, 1 there "
    "is no such thread or checkpoint, or it was refused, 2 wrong usage or not possible to find out.",
)

Thread = Annotated[str, typer.Argument(help="The id of the thread.", show_default=False)]
Threads = Annotated[list[str], typer.Argument(metavar="THREAD...", help="Ids of threads.", show_default=False)]
Namespace = Annotated[
    str, typer.Option(metavar="NS", help="The namespace of a subgraph, as `show` names them.", show_default=False)
]
Full = Annotated[bool, typer.Option("--full", help="Shorten nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Serde = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="The serializer that the application gives to CheckpointerConfig(serde=…). Needed for encrypted values.",
        show_default=False,
    ),
]


@threads.command("list")
def list_(
    user: Annotated[str | None, typer.Option(help="Only the threads of this user.", show_default=False)] = None,
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
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """List threads, newest first."""
    from enhanced_checkpointing.cli import threads_list as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, None, environment, env_file))
    wanted = command.Wanted(user, limit, before, tuple(metadata or ()), status)
    raise typer.Exit(carried_out(lambda: command.run(target, wanted, as_json=json), as_json=json))


@threads.command()
def show(
    thread: Thread,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="ID", help="This checkpoint, by the beginning of its id.", show_default=False),
    ] = None,
    namespace: Namespace = "",
    full: Full = False,
    serde: Serde = None,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Show the state of a conversation: its messages, what it waits for, and what comes next.

    Nothing of the application is imported or run, unless --serde names it.
    """
    from enhanced_checkpointing.cli import threads_show as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, journal_dir, environment, env_file), serde)
    raise typer.Exit(
        carried_out(
            lambda: command.run(target, thread, checkpoint=checkpoint, namespace=namespace, full=full, as_json=json),
            as_json=json,
        )
    )


@threads.command()
def history(
    thread: Thread,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many checkpoints at most.")] = 50,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="The next page, as the page before says it.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Those of subgraphs, too.")] = False,
    serde: Serde = None,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Draw the tree of a thread's checkpoints with its forks, newest first."""
    from enhanced_checkpointing.cli import threads_history as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, journal_dir, environment, env_file), serde)
    raise typer.Exit(
        carried_out(
            lambda: command.run(target, thread, limit=limit, before=before, every=every, as_json=json), as_json=json
        )
    )


@threads.command()
def diff(
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
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Show what changed between two checkpoints; without any, between the newest and its parent.

    Ids may be shortened, as `history` shows them.
    """
    from enhanced_checkpointing.cli import threads_diff as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, journal_dir, environment, env_file), serde)
    raise typer.Exit(
        carried_out(
            lambda: command.run(
                target, thread, command.range_of(first, second), namespace=namespace, full=full, as_json=json
            ),
            as_json=json,
        )
    )


@threads.command()
def delete(
    threads: Threads,
    yes: Yes = False,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Delete threads with everything that is stored of them. Refused while the journal holds anything of one."""
    from enhanced_checkpointing.cli import threads_change as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, journal_dir, environment, env_file))
    raise typer.Exit(carried_out(lambda: command.delete(target, threads, yes=yes, as_json=json), as_json=json))


@threads.command()
def copy(
    source: Annotated[str, typer.Argument(help="The thread to copy.", show_default=False)],
    target: Annotated[
        str | None, typer.Argument(help="The id of the copy. Default: a new one, which is printed.", show_default=False)
    ] = None,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Copy a thread, all of it or nothing. Refused while the journal holds anything of it."""
    from enhanced_checkpointing.cli import threads_change as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    database = Target(Options(database_url, sqlite, journal_dir, environment, env_file))
    raise typer.Exit(carried_out(lambda: command.copy(database, source, target, as_json=json), as_json=json))


@threads.command()
def prune(
    threads: Threads,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest checkpoints stay in each namespace.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    yes: Yes = False,
    serde: Serde = None,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Make threads small: only the newest checkpoints stay, and what they are rebuilt from.

    Refused while the journal holds anything of one of them.
    """
    from enhanced_checkpointing.cli import threads_change as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.threads import Target, carried_out

    target = Target(Options(database_url, sqlite, journal_dir, environment, env_file), serde)
    raise typer.Exit(
        carried_out(
            lambda: command.prune(target, threads, keep=keep, dry_run=dry_run, yes=yes, as_json=json), as_json=json
        )
    )
