"""The command line: exit code 0 if every promise was kept under chaos, else 1."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from rich.console import Console

from tests.chaos.arena import Arena, Options


def options_from(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults are made (default: 1)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="decides the faults (default: any)")
    parser.add_argument("--kills", action=argparse.BooleanOptionalAction, default=True, help="kill our own process too")
    given = parser.parse_args(arguments)
    return Options(60 * given.minutes, given.seed, given.kills)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_from(arguments)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"chaos with seed {options.seed}, kills of our own process {'on' if options.kills else 'off'}")
    with Arena(options, console.print) as arena:
        arena.play()
        verdict = arena.judge()
        console.print(verdict.table())
        if verdict.problems:
            for problem in verdict.problems:
                console.print(f"BROKEN: {problem}", markup=False)
            kills = "--kills" if options.kills else "--no-kills"
            again = f"nox -s chaos -- --minutes {options.seconds / 60:g} --seed {options.seed} {kills}"
            console.print(f"Run it again: {again}\nWhat the workers noted is in {arena.folder}")
        else:
            arena.forget()
            console.print("Nothing lost, nothing differs, every call in time.")
        return verdict.exit_code


if __name__ == "__main__":
    sys.exit(main())
