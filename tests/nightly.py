"""Everything that takes too long for every push, one after another, and one table of it: `nox -s nightly`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

FUZZED = (
    *(f"tests/unit/test_{name}.py" for name in ("frames", "codec", "journal_format", "exchange_lines", "errors")),
    *(f"tests/unit/test_{name}.py" for name in ("serialization", "stored_values", "postgres_arrays", "pruning")),
    *(f"tests/faults/test_{name}.py" for name in ("exchange", "hostile_rows", "hostile_text")),
)
"""Frames, journals, exports and rows, as whoever can write them may have made them."""


KILLS = 200
"""Of a process of ours, while it appends and while it replays."""


@dataclass(frozen=True)
class Part:
    """One row of the table: what is proved, how far it goes, and the command, with its environment variables."""

    name: str
    reach: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def parts(fuzz: int, seeds: int, minutes: float, first_seed: int) -> tuple[Part, ...]:
    pytest = sys.executable, "-m", "pytest", "-q", "--timeout", "7200"
    parallel = "-n", "2", "--dist", "worksteal"
    seed = "--seed", str(first_seed)
    faults = *pytest, "tests/conformance", "tests/faults", *parallel, "-m", "not alone"
    killed = *pytest, "tests/faults/test_killed_process.py", "-k", "killed_while_it_appends"
    nox = os.environ.get("NOX_PYTHON", sys.executable), "-m", "nox", "-s", "newest", "unit-3.12"
    return (
        Part(
            "fuzz",
            f"{fuzz} times the examples of a push",
            (*pytest, *parallel, *FUZZED),
            {"TEST_FUZZ_FACTOR": str(fuzz)},
        ),
        Part("simulation", f"{seeds} seeds", (sys.executable, "-m", "tests.simulation", *seed, "--seeds", str(seeds))),
        Part("chaos", f"{minutes:g} minutes", (sys.executable, "-m", "tests.chaos", *seed, "--minutes", str(minutes))),
        Part("long proofs", "every test with the mark `nightly`", (*pytest, "tests", "-m", "nightly", *parallel)),
        Part("killed process", f"{KILLS} kills", killed, {"TEST_KILLS": str(KILLS)}),
        Part("PostgreSQL 16", "every fault", faults, {"TEST_POSTGRES_VERSION": "16"}),
        Part("versions", "the newest dependencies; Python 3.12", nox),
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
    table, broken = Table(title=f"nightly, first seed {given.seed}"), False
    for name in ("part", "reach", "minutes", "result"):
        table.add_column(name)
    for part in parts(given.fuzz, given.seeds, given.minutes, given.seed):
        begun = time.monotonic()
        ended = subprocess.run(part.command, env=os.environ | part.environment, check=False).returncode
        broken = broken or ended != 0
        result = "kept every promise" if ended == 0 else f"BROKEN, exit code {ended}: see above"
        table.add_row(part.name, part.reach, f"{(time.monotonic() - begun) / 60:.1f}", result)
    Console(width=120).print(table)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
