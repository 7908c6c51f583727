"""What the demo found: one row for each conversation, and one sentence that says it all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from enhanced_checkpointing.cli.demo.proof import Comparison
from enhanced_checkpointing.cli.demo.record import Conversation, Event, Record

__all__ = ["Report", "Row"]

_FAULT_WORDS = {
    "kill": ("kill", "kills"),
    "freeze": ("freeze", "freezes"),
    "cut": ("cut connection", "cut connections"),
    "hang": ("hang", "hangs"),
    "lock": ("lock", "locks"),
}


@dataclass(frozen=True)
class Row:
    """One conversation: `difference` from its twin, and how the `bare_saver` lost it; None where they did not."""

    conversation: str
    title: str
    messages: int
    twin_messages: int
    checkpoints: int
    twin_checkpoints: int
    difference: str | None
    bare_saver_lost_it: str | None
    bare_saver_turn: int

    @classmethod
    def of(cls, guarded: Conversation, found: Comparison, bare: Conversation, *, bare_equal: bool) -> Self:
        otherwise = None if bare_equal else "it ended with other messages"
        return cls(
            conversation=guarded.name,
            title=guarded.title,
            messages=found.messages,
            twin_messages=found.twin_messages,
            checkpoints=found.checkpoints,
            twin_checkpoints=found.twin_checkpoints,
            difference=guarded.error or found.difference,
            bare_saver_lost_it=bare.error or otherwise,
            bare_saver_turn=bare.turn,
        )


@dataclass(frozen=True)
class Report:
    """The result; times are seconds unless they say milliseconds."""

    equal: bool
    verdict: str
    database: str
    seed: int
    seconds: float
    conversations: list[Row]
    bare_saver_lost: int
    faults: dict[str, int]
    operations: dict[str, int]
    latency_milliseconds: dict[str, float]
    timeline: list[Event]

    @classmethod
    def of(cls, record: Record, rows: list[Row], *, seed: int) -> Self:
        meter = record.meter
        return cls(
            equal=not any(row.difference for row in rows),
            verdict=_verdict(record, rows),
            database=record.title,
            seed=seed,
            seconds=round(record.elapsed, 1),
            conversations=rows,
            bare_saver_lost=sum(row.bare_saver_lost_it is not None for row in rows),
            faults=dict(record.faults),
            operations={**meter.outcomes, "drained": record.drained},
            latency_milliseconds={"p50": round(meter.p50_milliseconds, 2), "max": round(meter.max_milliseconds, 1)},
            timeline=record.events,
        )

    def as_json(self) -> dict[str, Any]:
        """The report in plain JSON types."""
        return asdict(self)


def _verdict(record: Record, rows: list[Row]) -> str:
    faults = " and ".join(f"{count} {_FAULT_WORDS[name][count > 1]}" for name, count in record.faults.items())
    lost = sum(row.bare_saver_lost_it is not None for row in rows)
    bare = f"in the same run the bare saver lost {lost} of {len(rows)}"
    different = [row for row in rows if row.difference]
    if different:
        return f"{len(different)} of {len(rows)} conversations differ from their twins without faults; {bare}."
    if not record.meter.outcomes["journaled"]:
        return f"Nothing differs, but no write met an outage, so this run proves nothing; {bare}."
    return (
        f"Through {faults} nothing was lost: all {len(rows)} conversations equal their twins without faults, "
        f"{sum(row.messages for row in rows)} messages and {sum(row.checkpoints for row in rows)} checkpoints; {bare}."
    )
