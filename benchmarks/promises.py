"""What the measurements are held against: every threshold, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.laboratory import DELAYED, LOOPBACK

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Promise:
    """A figure of a subject and the value that it must reach, or must not exceed."""

    text: str
    figure: str
    bound: Literal["at least", "at most", "below"]
    threshold: float
    unit: str = TIMES

    def judge(self, figures: Mapping[str, float]) -> Literal["met", "missed", "not measured"]:
        """A figure that is not a number, because an outage took part in it, is a miss."""
        if self.figure not in figures:
            return "not measured"
        value = figures[self.figure]
        met = {"at least": value >= self.threshold, "at most": value <= self.threshold, "below": value < self.threshold}
        return "met" if met[self.bound] else "missed"


def _ratios(text: str, figure: str, *thresholds: tuple[int, float]) -> tuple[Promise, ...]:
    return tuple(
        Promise(
            text.format(f"{count:,} at a time" if count > 1 else "one at a time"),
            figure.format(count),
            "at least",
            threshold,
        )
        for count, threshold in thresholds
    )


PROMISES = (
    *_ratios("PostgreSQL: writes, {}", f"writes/{LOOPBACK}/{{}}/ratio", (1, 1.1), (16, 3.5), (64, 5.0), (256, 4.5)),
    Promise(
        "PostgreSQL: p99 of ours by p50 of the bare saver, 16 callers and more, the worst",
        "writes/crowded_p99_to_bare_p50",
        "below",
        1.0,
    ),
    *_ratios("PostgreSQL, 2 ms: writes, {}", f"writes/{DELAYED}/{{}}/ratio", (1, 0.97), (16, 6), (64, 10), (256, 8)),
    Promise("PostgreSQL: connections that writes use", "writes/connections", "at most", 4, ""),
    *_ratios("SQLite: writes, {}", "embedded/sqlite/{}/ratio", (1, 1.0), (64, 4.0)),
    Promise("Memory: what a call costs on top, the dearest kind", "embedded/memory/overhead", "at most", 60, "µs"),
    *_ratios("PostgreSQL: aget_tuple, {}", f"reads/{LOOPBACK}/{{}}/ratio", (1, 1.0), (64, 1.5)),
    *_ratios("PostgreSQL, 2 ms: aget_tuple, {}", f"reads/{DELAYED}/{{}}/ratio", (1, 1.0), (64, 3.0)),
    *_ratios("PostgreSQL: LangGraph runs, {}", f"graphs/{LOOPBACK}/{{}}/ratio", (1, 1.2), (64, 2.2)),
    *_ratios("PostgreSQL, 2 ms: LangGraph runs, {}", f"graphs/{DELAYED}/{{}}/ratio", (1, 1.2), (64, 6.0)),
    Promise("5,000 threads at once: rows that are missing in the end", "crowd/missing", "at most", 0, "rows"),
    Promise("5,000 threads at once: memory on top, at the highest", "crowd/peak_mebibytes", "at most", 256, "MiB"),
    Promise(
        "Newest of 10,000 checkpoints among 100,000 threads, by newest of 10 among 10",
        "growth/ratio",
        "at most",
        2.0,
    ),
    Promise("Newest of 10,000 checkpoints among 100,000 threads, p50", "growth/milliseconds", "at most", 100, "ms"),
    *(
        Promise(
            f"{name}: newest 50 threads of the {user} user among 1,000,000 checkpoints, by among 10,000",
            f"listing/{name.lower()}/{user}/ratio",
            "at most",
            2.0,
        )
        for name in ("PostgreSQL", "SQLite")
        for user in ("growing", "steady")
    ),
)
