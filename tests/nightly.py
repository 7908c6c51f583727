"""Everything that takes too long for every push, one after another, and one table of it: `nox -s nightly`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

FUZZED = (
    *(f"tests/unit/test_{name}.py" for name in ("frames", "codec", "journal_format", "exchange_lines", "errors")),
    *(f"tests/unit/test_{name}.py" for name in ("serialization", "stored_values", "postgres_arrays", "pruning")),
    *(f"tests/faults/test_{name}.py" for name in ("exchange", "hostile_rows", "hostile_text")),
)
"""Frames, journals, exports and rows, as whoever can write them may have made them."""


@dataclass(frozen=True)
class Part:
    name: str
    reach: str
    command: tuple[str, ...]


def parts(fuzz: int, seeds: int, minutes: float, first_seed: int) -> tuple[Part, ...]:
    fuzzing = "-m", "pytest", "-q", "--timeout", "7200", "-n", "2", "--dist", "worksteal", *FUZZED
    simulation = "-m", "tests.simulation", "--seed", str(first_seed), "--seeds", str(seeds)
    chaos = "-m", "tests.chaos", "--minutes", str(minutes), "--seed", str(first_seed)
    return (
        Part("fuzz", f"{fuzz} times the examples of a push", fuzzing),
        Part("simulation", f"seeds {first_seed} to {first_seed + seeds - 1}", simulation),
        Part("chaos", f"{minutes:g} minutes, seed {first_seed}", chaos),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nightly", description=__doc__)
    parser.add_argument("--fuzz", type=int, default=50, help="how many times the examples of a push (default: 50)")
    parser.add_argument("--seeds", type=int, default=10_000, help="seeds of the simulation (default: 10000)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of chaos (default: 30)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()) // 86_400 * 10_000, help="first (default: of today)"
    )
    given = parser.parse_args(arguments)
    environment = os.environ | {"TEST_FUZZ_FACTOR": str(given.fuzz)}
    table, broken = Table(title="nightly"), False
    for name in ("part", "reach", "minutes", "result"):
        table.add_column(name)
    for part in parts(given.fuzz, given.seeds, given.minutes, given.seed):
        begun = time.monotonic()
        ended = subprocess.run([sys.executable, *part.command], env=environment, check=False).returncode
        broken = broken or ended != 0
        result = "kept every promise" if ended == 0 else f"BROKEN, exit code {ended}: see above"
        table.add_row(part.name, part.reach, f"{(time.monotonic() - begun) / 60:.1f}", result)
    Console(width=120).print(table)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
