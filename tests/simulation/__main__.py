"""The command line: exit code 0 if every seed kept every promise, else 1."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.run import play


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed, or the only one (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to run (default: 1)")
    parser.add_argument("--trace", action="store_true", help="print everything that happened")
    given = parser.parse_args(arguments)
    begun, failed = time.perf_counter(), []
    for count, seed in enumerate(range(given.seed, given.seed + given.seeds), start=1):
        verdict = play(seed)
        if given.trace:
            print("\n".join(verdict.trace))  # noqa: T201
        if verdict.problems:
            failed.append(seed)
            print(f"\nseed {seed} is broken; run it again: python -m tests.simulation --seed {seed} --trace")  # noqa: T201
            print("\n".join(verdict.problems))  # noqa: T201
        if given.seeds == 1:
            print(f"seed {seed}: trace hash {verdict.trace_hash}, {len(verdict.trace)} steps")  # noqa: T201
        elif count % 20 == 0 or count == given.seeds:
            rate = count / (time.perf_counter() - begun)
            print(f"\r{count} of {given.seeds} seeds, {len(failed)} broken, {rate:.1f}/s ", end="", flush=True)  # noqa: T201
    print()  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
