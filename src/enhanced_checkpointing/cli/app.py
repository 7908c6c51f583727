"""The commands of `checkpointing`: their options and help. The work of each is in a module of its name.

Each command imports its work when it runs: `--help` is fast, and `doctor` works where a driver cannot be imported.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from enhanced_checkpointing.cli.options import (
    DATABASE,
    DATABASE_AND_JOURNAL,
    ELSEWHERE,
    ID,
    JOURNAL,
    PROFILE,
    URL,
    command,
)

if TYPE_CHECKING:
    from enhanced_checkpointing.cli.configuration import Options
    from enhanced_checkpointing.cli.output import ExitCode

TITLE = "Tools around enhanced_checkpointing, the LangGraph checkpointer that survives its database."


def _group(help_: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=help_)


def _option(help_: str, *names: str, **more: Any) -> Any:
    """An option whose default needs no words."""
    return typer.Option(*names, help=help_, show_default=False, **more)


def _argument(help_: str, **more: Any) -> Any:
    return typer.Argument(help=help_, show_default=False, **more)


app = _group(TITLE)
journal = _group(
    "What was acknowledged in outages and is not in the database yet. Exit codes: 0 fine, 1 operations wait, were "
    "refused or are damaged, 2 wrong usage, or it could not be found out."
)
threads = _group(
    "The conversations in the database. These commands work while the application runs. Exit codes: 0 fine, 1 no such "
    "thread or checkpoint, or refused, 2 wrong usage, or it could not be found out."
)
retention = _group("Old threads: which ones are deleted, and when.")
audit = _group("Who deleted, erased, imported or exported which threads, and when.")

NAMES = (
    f"a URL (postgresql://… or sqlite:///path), the path of a SQLite file, or env for the configured one; {ELSEWHERE}"
)

Source = Annotated[str, _argument(f"Where the threads are: {NAMES}."), URL]
Target = Annotated[str, _argument(f"Where they go: {NAMES}."), URL]
Thread = Annotated[str, _argument("The thread's id."), ID]
Threads = Annotated[list[str], _argument("Ids of threads.", metavar="THREAD..."), ID]
Namespace = Annotated[str, _option("The namespace of a subgraph, as `show` names it.", metavar="NS"), ID]
User = Annotated[str | None, _option("As this user: threads of other owners do not exist."), ID]
OfUser = Annotated[str | None, _option("Only threads of this user."), ID]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="At most this many.")]
Before = Annotated[str | None, _option("The next page, as the previous page names it.")]
Full = Annotated[bool, typer.Option("--full", help="Shorten nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace threads of which the target has other or newer contents.")
]
Concurrency = Annotated[int, typer.Option(min=1, max=100, help="Threads moved at a time.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing while all goes well.")]
Days = Annotated[float | None, _option("Days, instead of the configured ones.", min=0.0)]
Step = Annotated[float, typer.Option(min=0.1, max=60.0, help="Seconds that one step may take.")]
DrainSeconds = Annotated[float, typer.Option(min=0.1, max=86_400.0, help="Drain for at most this many seconds.")]
Serde = Annotated[
    str | None,
    _option(
        "The serializer that the application gives to CheckpointerConfig(serde=…). Needed for encrypted values.",
        metavar="MODULE:NAME",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"checkpointing {metadata.version('enhanced-checkpointing')}")
        raise typer.Exit


@app.callback(help=TITLE)
def _start(
    version: Annotated[  # its callback has done it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of a traceback


@app.command()
def demo(
    database_url: Annotated[
        str | None,
        _option(
            "Use this PostgreSQL: its connections are cut, the server is not touched. The tables are made in a schema "
            f"of their own, which is dropped at the end. Default: a server started for the demo. {ELSEWHERE}."
        ),
    ] = None,
    sqlite: Annotated[
        bool, typer.Option("--sqlite", help="Use a SQLite file that is locked repeatedly, not PostgreSQL.")
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
    """Run agent teams while their database is killed repeatedly, and prove that nothing was lost.

    Exit code 0: every conversation equals its run without faults. 1: one differs. 2: it could not run.
    """
    if database_url and sqlite:
        raise typer.BadParameter("choose one of --database-url and --sqlite")
    from enhanced_checkpointing.cli.demo.command import Plan, play

    plan = Plan(conversations=conversations, turns=turns, seed=seed, pace=pace, plant_difference=plant_difference)
    raise typer.Exit(play(plan, database_url=database_url, sqlite=sqlite, as_json=json, plain=plain))


app.add_typer(journal, name="journal")
app.add_typer(threads, name="threads")
app.add_typer(retention, name="retention")
app.add_typer(audit, name="audit")


@command(app, takes=DATABASE_AND_JOURNAL)
def doctor(options: Options, as_json: bool, serde: Serde = None, timeout: Step = 5.0) -> ExitCode:
    """Check everything that a start needs: settings, database, journal, versions, clock. Nothing is changed.

    Exit code 0: an application can start. 1: something must be fixed; cause and fix are printed. 2: wrong usage.
    """
    from enhanced_checkpointing.cli.doctor.command import run

    return run(options, serde, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE_AND_JOURNAL)
def health(
    options: Options,
    as_json: bool,
    url: Annotated[
        str | None,
        _option(f"Ask the application that serves the checkpointer here. Default: look from outside. {ELSEWHERE}."),
        URL,
    ] = None,
    timeout: Step = 5.0,
) -> ExitCode:
    """Tell how the checkpointer is. From outside, nothing is taken over or drained, and the breaker is not seen.

    Exit code 0: healthy. 1: degraded or unhealthy. 2: it could not be found out.
    """
    from enhanced_checkpointing.cli.health import run

    return run(options, url=url, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE)
def setup(
    options: Options,
    as_json: bool,
    wait: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds to wait for a database that is down or read-only.")
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option(min=1.0, max=86_400.0, help="Seconds that making and migrating the tables may take.")
    ] = 600.0,
) -> ExitCode:
    """Make or migrate the tables. Any number of processes may do so at the same time.

    Exit code 0: the tables are there, and a write was proven. 1: they could not be made. 2: wrong usage or settings.
    """
    from enhanced_checkpointing.cli.setup import run

    return run(options, wait=wait, timeout=timeout, as_json=as_json)


@command(app, takes=DATABASE_AND_JOURNAL)
def erase(
    options: Options,
    as_json: bool,
    thread: Annotated[str | None, _option("This thread."), ID] = None,
    user: Annotated[str | None, _option("All threads of this user; with --thread: only if it is theirs."), ID] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> ExitCode:
    """Erase what is stored of a thread or a user: in the database, the journal, dead letters and quarantine.

    What ended processes left in the journal is taken over and drained, as at a start. A receipt says what remains.

    Exit code 0: nothing is left to do. 1: something is erased later, or by asking again. 2: not possible.
    """
    from enhanced_checkpointing.cli.erase import run

    return run(options, thread, user, dry_run=dry_run, yes=yes, as_json=as_json)


# Journal


@command(journal, takes=JOURNAL)
def status(options: Options, as_json: bool) -> ExitCode:
    """Show every journal in the directory: its owner, and what waits in it. Nothing is changed."""
    from enhanced_checkpointing.cli.journal import show_status

    return show_status(options, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def drain(options: Options, as_json: bool, timeout: DrainSeconds = 600.0) -> ExitCode:
    """Bring what ended processes left to the database. Exit code 0 only if nothing waits in the directory any more.

    Commands never touch a live process's journal: that is left alone, and reported.
    """
    from enhanced_checkpointing.cli.drain import drain

    return drain(options, timeout=timeout, as_json=as_json)


@command(journal, "dead-letters", takes=JOURNAL)
def dead_letters(options: Options, as_json: bool) -> ExitCode:
    """List what the database refused permanently: thread, operation, error. Nothing is changed."""
    from enhanced_checkpointing.cli.journal import show_letters

    return show_letters(options, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def retry(
    options: Options,
    as_json: bool,
    thread_id: Annotated[str | None, _argument("The thread."), ID] = None,
    every: Annotated[bool, typer.Option("--all", help="Every thread that has dead letters.")] = False,
    timeout: DrainSeconds = 600.0,
) -> ExitCode:
    """Try the dead letters of one thread, or of all, once more, and what waits behind them.

    Exit code 0: none of them is left. 1: one was refused again. 2: there is none, or a running process holds it.
    """
    if thread_id is not None and every:
        raise typer.BadParameter("a thread was named, and --all was given: choose one of them")
    if thread_id is None and not every:
        raise typer.BadParameter("name one thread, or give --all")
    from enhanced_checkpointing.cli.drain import retry

    return retry(options, thread_id, timeout=timeout, as_json=as_json)


@command(journal, takes=DATABASE_AND_JOURNAL)
def quarantine(
    options: Options,
    as_json: bool,
    copy_to: Annotated[Path | None, _option("Copy what is damaged into this new folder.")] = None,
    branches: Annotated[
        bool, typer.Option("--branches", help="Ask the database for branches of outages that were put aside, too.")
    ] = False,
) -> ExitCode:
    """Show what is damaged, which threads that freezes, and what can be done. Nothing is changed."""
    from enhanced_checkpointing.cli.journal import show_quarantine

    return show_quarantine(options, copy_to=copy_to, branches=branches, as_json=as_json)


# Threads


@command(threads, "list", takes=DATABASE)
def list_(
    options: Options,
    as_json: bool,
    user: OfUser = None,
    limit: Limit = 50,
    before: Before = None,
    metadata: Annotated[
        list[str] | None,
        _option("Only threads with this metadata; JSON, else text. Can be repeated.", metavar="KEY=VALUE"),
    ] = None,
    status: Annotated[str | None, _option("Only threads that are active, completed or failed.")] = None,
) -> ExitCode:
    """List threads, newest first."""
    from enhanced_checkpointing.cli.threads.database import Target
    from enhanced_checkpointing.cli.threads.list import Wanted, run

    wanted = Wanted(user, limit, before, tuple(metadata or ()), status)
    return run(Target(options, user=user), wanted, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def show(
    options: Options,
    as_json: bool,
    thread: Thread,
    checkpoint: Annotated[str | None, _option("This checkpoint, by the beginning of its id.", metavar="ID")] = None,
    namespace: Namespace = "",
    full: Full = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Show the state of a conversation: its messages, what it waits for, and what comes next.

    No code of the application is imported or run, unless --serde names it.
    """
    from enhanced_checkpointing.cli.threads.database import Target
    from enhanced_checkpointing.cli.threads.show import run

    target = Target(options, serde, user)
    return run(target, thread, checkpoint=checkpoint, namespace=namespace, full=full, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def history(
    options: Options,
    as_json: bool,
    thread: Thread,
    limit: Limit = 50,
    before: Before = None,
    every: Annotated[bool, typer.Option("--all", help="Those of subgraphs, too.")] = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Draw the tree of a thread's checkpoints with its forks, newest first."""
    from enhanced_checkpointing.cli.threads.database import Target
    from enhanced_checkpointing.cli.threads.history import run

    target = Target(options, serde, user)
    return run(target, thread, limit=limit, before=before, every=every, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def diff(
    options: Options,
    as_json: bool,
    thread: Thread,
    first: Annotated[
        str | None, _argument("A checkpoint, or a range: A..B, or A.. to the newest.", metavar="[A]")
    ] = None,
    second: Annotated[str | None, _argument("The other one. Default: A from its parent.", metavar="[B]")] = None,
    namespace: Namespace = "",
    full: Full = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Show what changed between two checkpoints; by default, between the newest and its parent.

    Ids may be shortened, as `history` shows them.
    """
    from enhanced_checkpointing.cli.threads.database import Target
    from enhanced_checkpointing.cli.threads.diff import range_of, run

    target = Target(options, serde, user)
    return run(target, thread, range_of(first, second), namespace=namespace, full=full, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def delete(options: Options, as_json: bool, threads: Threads, yes: Yes = False, user: User = None) -> ExitCode:
    """Delete threads with everything stored of them. Refused while the journal holds anything of one."""
    from enhanced_checkpointing.cli.threads.change import delete
    from enhanced_checkpointing.cli.threads.database import Target

    return delete(Target(options, user=user), threads, yes=yes, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def copy(
    options: Options,
    as_json: bool,
    source: Annotated[str, _argument("The thread to copy."), ID],
    target: Annotated[str | None, _argument("The id of the copy. Default: a new one, which is printed."), ID] = None,
    user: User = None,
) -> ExitCode:
    """Copy a thread, all of it or nothing. Refused while the journal holds anything of it."""
    from enhanced_checkpointing.cli.threads.change import copy
    from enhanced_checkpointing.cli.threads.database import Target

    return copy(Target(options, user=user), source, target, as_json=as_json)


@command(threads, takes=DATABASE_AND_JOURNAL)
def prune(
    options: Options,
    as_json: bool,
    threads: Threads,
    keep: Annotated[int, typer.Option(min=1, help="The newest checkpoints to keep in each namespace.")] = 1,
    dry_run: DryRun = False,
    yes: Yes = False,
    serde: Serde = None,
    user: User = None,
) -> ExitCode:
    """Trim threads: keep only the newest checkpoints, and what they are rebuilt from.

    Refused while the journal holds anything of one of them.
    """
    from enhanced_checkpointing.cli.threads.change import prune
    from enhanced_checkpointing.cli.threads.database import Target

    return prune(Target(options, serde, user), threads, keep=keep, dry_run=dry_run, yes=yes, as_json=as_json)


# Threads from place to place


@command(app, takes=PROFILE)
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
    """Copy every thread of one database into another, and compare the two.

    Stop it and run it again at any time: what is there already is compared and left alone.

    What the source gets meanwhile may be missed: stop the application first, or run this again for the rest.

    A thread that has gone on in the target is refused, not overwritten, unless --overwrite says so.

    Exit code 0: the target has every thread of the source, and equal. 1: it has not; they are named. 2: not possible.
    """
    if verify_only and (dry_run or overwrite):
        raise typer.BadParameter("--verify-only changes nothing: it goes with neither --dry-run nor --overwrite")
    from enhanced_checkpointing.cli.database import Naming
    from enhanced_checkpointing.cli.moving import Showing, run_migrate
    from enhanced_checkpointing.threads.migrate import Orders

    naming = Naming(options.environment, options.env_file, serde, concurrency)
    orders = Orders(overwrite=overwrite, rehearse=dry_run, compare_only=verify_only)
    return run_migrate(source, target, naming, orders, Showing(as_json, quiet))


@command(app, takes=PROFILE)
def export(
    options: Options,
    as_json: bool,
    source: Source,
    file: Annotated[str, _argument("The file to make, or - for standard output.")],
    thread: Annotated[list[str] | None, _option("Only the thread with this id; can be repeated."), ID] = None,
    serde: Serde = None,
    quiet: Quiet = False,
) -> ExitCode:
    """Write threads as JSON lines, which people can read and `import` takes exactly as they were.

    With - as the file, the summary goes to stderr. What the source gets meanwhile may be missed.

    Exit code 0: all is written. 1: some threads cannot be read; they are named. 2: wrong usage, or not possible.
    """
    from enhanced_checkpointing.cli.database import Naming
    from enhanced_checkpointing.cli.moving import Showing, run_export

    naming = Naming(options.environment, options.env_file, serde)
    return run_export(source, file, thread or (), naming, Showing(as_json, quiet))


@command(app, "import", takes=PROFILE)
def import_(
    options: Options,
    as_json: bool,
    file: Annotated[str, _argument("What was exported, or - for standard input.")],
    target: Target,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    concurrency: Concurrency = 4,
    serde: Serde = None,
    quiet: Quiet = False,
) -> ExitCode:
    """Copy the threads of an export into a database. Stop it and run it again at any time.

    A thread with a damaged line is left out, and the line is named. One that has gone on in the target is refused.

    Exit code 0: the target has every thread of the export, and equal. 1: it has not; they are named. 2: not possible.
    """
    from enhanced_checkpointing.cli.database import Naming
    from enhanced_checkpointing.cli.moving import Showing, run_import
    from enhanced_checkpointing.threads.migrate import Orders

    naming = Naming(options.environment, options.env_file, serde, concurrency)
    orders = Orders(overwrite=overwrite, rehearse=dry_run)
    return run_import(file, target, naming, orders, Showing(as_json, quiet))


# Retention and the audit trail


@retention.callback()
def _retention() -> None:  # a group with one command, which is named all the same
    """Old threads: which ones are deleted, and when."""


@command(retention, takes=DATABASE_AND_JOURNAL)
def run(
    options: Options,
    as_json: bool,
    dry_run: DryRun = False,
    active_days: Days = None,
    completed_days: Days = None,
    failed_days: Days = None,
    keep: Annotated[
        int | None, _option("The newest checkpoints to keep of each thread, instead of the configured number.", min=1)
    ] = None,
) -> ExitCode:
    """Look at every thread once: delete the old ones, and trim the others if --keep or the environment says so.

    Threads that await human input stay, as do those of which the journal holds anything. Applications may run.

    Stop it and run it again at any time. While an application does this itself, nothing is done here.

    Exit code 0: every thread was looked at. 1: not all could be, or another process does this now. 2: not possible.
    """
    from enhanced_checkpointing.cli.retention import run

    given = {
        "retention_active_days": active_days,
        "retention_completed_days": completed_days,
        "retention_failed_days": failed_days,
        "retention_keep": keep,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return run(options, given, dry_run=dry_run, as_json=as_json)


@command(audit, "show", takes=JOURNAL)
def show_audit(
    options: Options,
    as_json: bool,
    thread: Annotated[str | None, _option("Only entries that name this thread."), ID] = None,
    limit: Limit = 50,
    before: Annotated[int | None, _option("The next page, as the previous page names it.")] = None,
) -> ExitCode:
    """Show the audit trail, newest first."""
    from enhanced_checkpointing.cli.audit import show

    return show(options, thread, limit=limit, before=before, as_json=as_json)


@command(audit, takes=JOURNAL)
def verify(
    options: Options,
    as_json: bool,
    known: Annotated[str | None, _option("The hash of an entry that was there before.", metavar="HASH")] = None,
) -> ExitCode:
    """Check whether every entry is as it was written, and none is missing.

    Exit code 0: it is whole. 1: it is not; the first broken line is named. 2: it could not be found out.
    """
    from enhanced_checkpointing.cli.audit import verify

    return verify(options, known, as_json=as_json)
