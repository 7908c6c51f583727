"""The commands of `checkpointing journal`: their options and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enhanced_checkpointing.cli.options import DatabaseUrl, EnvFile, Environment, JournalDir, Json, Sqlite

__all__ = ["journal"]

journal = typer.Typer(
    no_args_is_help=True,
    help="What was acknowledged in outages and is not in the database yet. Exit codes: 0 fine, 1 something waits, was "
    "refused or is damaged, 2 wrong usage or not possible to find out.",
)

Timeout = Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Seconds to drain for at most.")]


@journal.command()
def status(journal_dir: JournalDir = None, env_file: EnvFile = None, json: Json = False) -> None:
    """Show every book in the directory: whose it is, and what waits in it. Nothing is changed."""
    from enhanced_checkpointing.cli import journal_status as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.screen import guarded

    options = Options(journal_dir=journal_dir, env_file=env_file)
    raise typer.Exit(guarded(lambda: command.run(options, as_json=json), as_json=json))


@journal.command()
def drain(
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    timeout: Timeout = 600.0,
    json: Json = False,
) -> None:
    """Bring what ended processes left to the database. Exit code 0 only when nothing waits in the directory any more.

    What running processes hold is theirs: it is left alone, and told.
    """
    from enhanced_checkpointing.cli import journal_drain as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.screen import guarded

    options = Options(database_url, sqlite, journal_dir, environment, env_file)
    raise typer.Exit(guarded(lambda: command.drain(options, timeout=timeout, as_json=json), as_json=json))


@journal.command("dead-letters")
def dead_letters(journal_dir: JournalDir = None, env_file: EnvFile = None, json: Json = False) -> None:
    """List what the database refused for good: thread, operation, error. Nothing is changed."""
    from enhanced_checkpointing.cli import journal_letters as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.screen import guarded

    options = Options(journal_dir=journal_dir, env_file=env_file)
    raise typer.Exit(guarded(lambda: command.run(options, as_json=json), as_json=json))


@journal.command()
def retry(
    thread_id: Annotated[str | None, typer.Argument(help="The thread.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="Every thread that has dead letters.")] = False,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    timeout: Timeout = 600.0,
    json: Json = False,
) -> None:
    """Try the dead letters of one thread, or of all, once more, and what waits behind them.

    Exit code 0: none of them is left. 1: one was refused again. 2: there is none, or a running process holds it.
    """
    from enhanced_checkpointing.cli import journal_drain as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.screen import guarded

    if (thread_id is None) is not every:
        raise typer.BadParameter("name one thread, or give --all")
    options = Options(database_url, sqlite, journal_dir, environment, env_file)
    raise typer.Exit(guarded(lambda: command.retry(options, thread_id, timeout=timeout, as_json=json), as_json=json))


@journal.command()
def quarantine(
    copy_to: Annotated[
        Path | None, typer.Option(help="Copy what is damaged into this new folder.", show_default=False)
    ] = None,
    branches: Annotated[
        bool, typer.Option("--branches", help="Ask the database for branches of outages that were put aside, too.")
    ] = False,
    database_url: DatabaseUrl = None,
    sqlite: Sqlite = None,
    journal_dir: JournalDir = None,
    environment: Environment = None,
    env_file: EnvFile = None,
    json: Json = False,
) -> None:
    """Show what is damaged, which threads that freezes, and what can be done. Nothing is changed."""
    from enhanced_checkpointing.cli import journal_quarantine as command
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.screen import guarded

    options = Options(database_url, sqlite, journal_dir, environment, env_file)
    raise typer.Exit(
        guarded(lambda: command.run(options, copy_to=copy_to, branches=branches, as_json=json), as_json=json)
    )
