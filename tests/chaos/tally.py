"""What the workers noted, counted; and the report an operator reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.chaos.plan import Note

LATE = 0.1
"""Seconds that a call may return after its deadline."""

SHOWN = 10
"""Threads that are named of each problem."""

Key = tuple[str | int, ...]


@dataclass
class Tally:
    """The sum of a ledger, fed note by note."""

    deadline: float
    begun: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)
    disturbed: set[int] = field(default_factory=set)
    """Runs that were cut off, by a SIGKILL or because their thread was out of reach after one."""
    acknowledged: dict[str, dict[str, set[Key]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    """By thread and table, the keys of the rows whose write was acknowledged."""
    operations: int = 0
    waited: int = 0
    journaled: int = 0
    drained: int = 0
    divergences: int = 0
    alarms: list[str] = field(default_factory=list)
    """What the library itself calls an error, such as a part that ended by a bug and was started again."""
    started: int | None = None
    """The process id of the worker that started last."""
    ends: list[Note] = field(default_factory=list)
    outages: list[Note] = field(default_factory=list)
    slow: list[tuple[float, float]] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)

    def take(self, notes: Iterable[Note]) -> None:
        for note in notes:
            self._take(note)

    def _take(self, note: Note) -> None:
        match note["kind"]:
            case "begun":
                self.begun.add(note["run"])
            case "done":
                self.done.add(note["run"])
            case "failed":
                self.failed[note["run"]] = note["error"]
            case "started":
                self.started = note["process"]
                self.disturbed |= self.begun - self.done - self.failed.keys()
            case "waited":
                self.waited += 1
                self.disturbed.add(note["run"])
            case "acknowledged":
                self.operations += 1
                self.acknowledged[note["thread"]][note["table"]] |= {tuple(key) for key in note["keys"]}
            case "journaled":
                self.journaled += 1
            case "drained":
                self.drained += note["operations"]
            case "alarm":
                self.alarms.append(note["text"])
            case "diverged":
                self.divergences += 1
            case "outage":
                self.outages.append(note)
            case "slow":
                self.slow.append((note["since"], note["until"]))
            case "stall":
                self.stalls.append((note["since"], note["until"]))
            case "ended":
                self.ends.append(note)

    @property
    def worst(self) -> float:
        """Seconds that the slowest call took."""
        return max((until - since for since, until in self.slow), default=0.0)

    @property
    def worst_without_stalls(self) -> float:
        """The same without the time in which the event loop stood still."""
        return max((until - since - self.stood_still(since, until) for since, until in self.slow), default=0.0)

    @property
    def late_calls(self) -> int:
        """Calls over their deadline for which no event loop that stood still is to blame."""
        most = self.deadline + LATE
        return sum(until - since - self.stood_still(since, until) > most for since, until in self.slow)

    def stood_still(self, since: float, until: float) -> float:
        """Seconds between these moments in which the event loop stood still."""
        return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in self.stalls)

    @property
    def longest_outage(self) -> float:
        """Seconds from a breaker's opening until its journal was drained, within one process."""
        return max((outage["seconds"] for outage in self.outages), default=0.0)

    @property
    def drain_rate(self) -> float:
        """Operations per second, from the breaker's closing until the journal was empty."""
        seconds = sum(outage["draining"] for outage in self.outages)
        return sum(outage["drained"] for outage in self.outages) / seconds if seconds else 0.0

    def problems(self) -> list[str]:
        """Every broken promise that shows in the ledger itself."""
        found = [f"run {number} failed:\n{error}" for number, error in sorted(self.failed.items())[:SHOWN]]
        found += [f"alarm: {text}" for text in dict.fromkeys(self.alarms)]
        if unfinished := self.begun - self.done - self.failed.keys():
            found.append(f"never finished: runs {sorted(unfinished)}")
        if not self.ends or not self.ends[-1]["drained"]:
            found.append(f"the journal was not drained: {self.ends[-1]['journal'] if self.ends else 'no worker ended'}")
        if self.late_calls:
            found.append(f"{self.late_calls} calls took longer than {self.deadline} s + {LATE} s")
        if not self.done:
            found.append("nothing was done")
        return found
