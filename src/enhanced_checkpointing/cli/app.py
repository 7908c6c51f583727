"""The commands of `checkpointing`: their options and nothing else. What a command does is in a module of its name."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

from enhanced_checkpointing.cli.app_audit import audit
from enhanced_checkpointing.cli.app_journal import journal
from enhanced_checkpointing.cli.app_moving import moving
from enhanced_checkpointing.cli.app_retention import retention
from enhanced_checkpointing.cli.app_threads import threads
from enhanced_checkpointing.cli.options import DATABASE, DATABASE_AND_JOURNAL, ELSEWHERE, ID, URL, command

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tools around enhanced_checkpointing, the LangGraph checkpointer that survives its database.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"checkpointing {metadata.version('enhanced-checkpointing')}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[  # its callback has done it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Tools around enhanced_checkpointing, the LangGraph checkpointer that survives its database."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of a traceback


@app.command()
def demo(
    database_url: Annotated[
        str | None,
        typer.Option(
            help="Use this PostgreSQL: its connections are cut, the server is not touched. The tables are made in a "
            "schema of their own, which is dropped at the end. Default: a server that is started for the demo. "
            f"{ELSEWHERE}.",
            show_default=False,
        ),
    ] = None,
    sqlite: Annotated[
        bool, typer.Option("--sqlite", help="Use a SQLite file that is locked again and again, not PostgreSQL.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses what the agents say; the same seed says the same.")] = 1,
    conversations: Annotated[int, typer.Option(min=1, max=50, help="Conversations at the same time.")] = 6,
    turns: Annotated[
        int, typer.Option(min=2, max=50, help="Turns of each, eight thoughts long; one fault in all but the last.")
    ] = 5,
    pace: Annotated[float, typer.Option(min=0.05, max=5.0, help="Seconds that the model thinks each time.")] = 0.5,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end; the story on stderr.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a live display.")] = False,
    plant_difference: Annotated[bool, typer.Option("--plant-difference", hidden=True)] = False,
) -> None:
    """Run agent teams while their database is killed again and again, and prove that nothing was lost.

    Exit code 0: every conversation equals its twin without faults. 1: one differs. 2: something is missing or wrong.
    """
    if database_url and sqlite:
        raise typer.BadParameter("choose one of --database-url and --sqlite")

    from enhanced_checkpointing.cli.demo.command import Plan, play  # here, as LangGraph takes its time to be imported

    plan = Plan(conversations=conversations, turns=turns, seed=seed, pace=pace, plant_difference=plant_difference)
    raise typer.Exit(play(plan, database_url=database_url, sqlite=sqlite, as_json=json, plain=plain))


app.add_typer(journal, name="journal")
app.add_typer(threads, name="threads")
app.add_typer(retention, name="retention")
app.add_typer(audit, name="audit")
app.add_typer(moving)


@command(app, takes=DATABASE_AND_JOURNAL)
def doctor(
    options: Options,
    as_json: bool,
    timeout: Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds that one step may take.")] = 5.0,
) -> ExitCode:
    """Look at everything that a start needs: settings, database, journal, versions, clock. Nothing is changed.

    Exit code 0: an application can start. 1: something is to be mended; cause and fix are printed. 2: wrong usage.
    """
    from enhanced_checkpointing.cli.doctor import command as work

    return work.run(options, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE_AND_JOURNAL)
def health(
    options: Options,
    as_json: bool,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask the application whose checkpointer's app is mounted here. Default: look from outside. "
            f"{ELSEWHERE}.",
            show_default=False,
        ),
        URL,
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds that one step may take.")] = 5.0,
) -> ExitCode:
    """Tell how the checkpointer is. From outside, nothing is taken over or drained, and the breaker is not seen.

    Exit code 0: healthy. 1: degraded or unhealthy. 2: nobody could find out.
    """
    from enhanced_checkpointing.cli import health as work

    return work.run(options, url=url, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE)
def setup(
    options: Options,
    as_json: bool,
    wait: Annotated[
        float,
        typer.Option(min=0.0, max=3600.0, help="Seconds to wait for a database that does not answer, or is read-only."),
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, help="Seconds that making and migrating the tables may take.")
    ] = 600.0,
) -> ExitCode:
    """Make or migrate the tables. Any number of processes may do so at the same time.

    Exit code 0: the tables are there, and a write was proven. 1: they could not be made. 2: wrong usage or settings.
    """
    from enhanced_checkpointing.cli import setup as work

    return work.run(options, wait=wait, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE_AND_JOURNAL)
def erase(
    options: Options,
    as_json: bool,
    thread: Annotated[str | None, typer.Option(help="This thread.", show_default=False), ID] = None,
    user: Annotated[
        str | None,
        typer.Option(help="All threads of this user; with --thread: only if it is theirs.", show_default=False),
        ID,
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> ExitCode:
    """Erase what is stored of a thread or a user: in the database, the journal, dead letters and quarantine.

    What ended processes left in the journal is taken over and drained, as a start does. A receipt says what remains.

    Exit code 0: nothing is left to be done. 1: something is erased later, or by asking again. 2: not possible.
    """
    from enhanced_checkpointing.cli import erase as work

    return work.run(options, thread, user, dry_run=dry_run, yes=yes, as_json=as_json)
