"""Tables on the terminal, and the same ones in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import rich.table
from rich.console import Console

from benchmarks.laboratory import Table
from benchmarks.promises import PROMISES

METHOD = (
    "Each figure compares this library, set up with its defaults (guard, standby, durable journal ready, telemetry), "
    "with the bare saver of LangGraph in the same run: short rounds of both in turns, each with a database of its own. "
    "A figure is the median over the rounds, a ratio the median over the pairs of rounds; above 1 this library is the "
    "faster one. One operation is one call; what the callers write is prepared before the clock starts. The bare "
    "PostgreSQL saver has a pool of 20 connections. `python -m benchmarks --help` says how to measure less, or again."
)
COLOURS = {"met": "green", "missed": "red", "not measured": "dim"}


def promise_table(figures: Mapping[str, float]) -> Table:
    """Every promise with what was measured; those of subjects that did not run are left out."""
    rows = []
    for promise in PROMISES:
        verdict = promise.judge(figures)
        if verdict != "not measured":
            value = figures[promise.figure]
            measured = "an outage took part" if math.isnan(value) else f"{value:,.4g} {promise.unit}".rstrip()
            threshold = f"{promise.bound} {promise.threshold:g} {promise.unit}".rstrip()
            rows.append((promise.text, threshold, measured, verdict))
    return Table("Promises", ("promise", "threshold", "measured", ""), rows)


def show(console: Console, table: Table) -> None:
    drawn = rich.table.Table(title=table.title, caption=table.note or None, title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right")
    for row in table.rows:
        drawn.add_row(*(f"[{COLOURS[cell]}]{cell}[/]" if cell in COLOURS else cell for cell in row))
    console.print(drawn)


def write(file: Path, command: str, machine: list[tuple[str, str]], tables: Iterable[Table], images: list[str]) -> None:
    """The whole document; `images` are paths from its folder."""
    parts = [
        "# Benchmarks",
        f"Made by `{command}`, which writes this file anew.",
        METHOD,
        *(f"![{Path(image).stem}]({image})" for image in images),
        _markdown(Table("Measured on", ("what", "which"), machine)),
        *(_markdown(table) for table in tables),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _markdown(table: Table) -> str:
    lines = [
        _line(table.columns),
        _line("---" if number == 0 else "---:" for number, _ in enumerate(table.columns)),
        *(_line(row) for row in table.rows),
    ]
    note = [table.note] if table.note else []
    return "\n\n".join([f"## {table.title}", *note, "\n".join(lines)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
