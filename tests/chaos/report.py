"""What a chaos run came to, in words for whoever reads it at night."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from tests.chaos.tally import LATE, SHOWN, Tally


@dataclass(frozen=True)
class Verdict:
    """The counts, and every promise that was broken."""

    tally: Tally
    faults: dict[str, int]
    kills: int
    lost: dict[str, int]
    differing: dict[str, str]
    deaths: list[str]

    @property
    def problems(self) -> list[str]:
        """One entry for each broken promise; empty when all were kept."""
        found = [*self.deaths, *self.tally.problems()]
        found += [f"{rows} acknowledged rows of {thread} are lost" for thread, rows in list(self.lost.items())[:SHOWN]]
        found += [f"{thread} differs: {what}" for thread, what in list(self.differing.items())[:SHOWN]]
        return found

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0

    def table(self) -> Table:
        """The report without the problems."""
        tally = self.tally
        table = Table("what", "how much", title="Chaos")
        for kind, times in self.faults.items():
            table.add_row(f"fault: {kind}", str(times))
        rows: dict[str, object] = {
            "our process killed": self.kills,
            "runs done": len(tally.done),
            "  of them cut off and finished by a later process": len(tally.disturbed & tally.done),
            "runs failed": len(tally.failed),
            "waits for a thread out of reach after a restart": tally.waited,
            "operations acknowledged": tally.operations,
            "operations journaled": tally.journaled,
            "operations drained": tally.drained,
            "divergences": tally.divergences,
            "rows lost": sum(self.lost.values()),
            "threads that differ from their twin": len(self.differing),
            "worst call": f"{tally.worst:.3f} s (deadline {tally.deadline} s + {LATE} s)",
            "worst call, event loop's standstill taken off": f"{tally.worst_without_stalls:.3f} s",
            "longest standstill of the event loop": f"{max((b - a for a, b in tally.stalls), default=0.0):.3f} s",
            "longest outage": f"{tally.longest_outage:.1f} s",
            "drain rate": f"{tally.drain_rate:.0f} operations/s",
        }
        for what, value in rows.items():
            table.add_row(what, str(value))
        return table
