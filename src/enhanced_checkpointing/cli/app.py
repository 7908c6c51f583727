"""The commands of `checkpointing`: their options and nothing else. What a command does is in a module of its name."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tools around enhanced_checkpointing, the LangGraph checkpointer that survives its database.",
)


@app.callback()
def _commands() -> None:
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
            "schema of their own, which is dropped at the end. Default: a server that is started for the demo.",
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

    from enhanced_checkpointing.cli.demo import Plan, play  # here, as LangGraph takes its time to be imported

    plan = Plan(conversations=conversations, turns=turns, seed=seed, pace=pace, plant_difference=plant_difference)
    raise typer.Exit(play(plan, database_url=database_url, sqlite=sqlite, as_json=json, plain=plain))
