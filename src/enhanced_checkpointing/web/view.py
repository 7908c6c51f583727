"""What the status page says, decided from values: which state this is, what it means for the data, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from enhanced_checkpointing.observability.recent import Latency, Message, PastOutage, Recent, Sample
from enhanced_checkpointing.web.words import several

CALL_SECONDS = 300.0
"""How far back the calls are looked at, in seconds."""

NOTED_FILL = 0.5
"""The share of its room from which a filling journal is pointed out; its first alarm is there, too."""


class Mode(StrEnum):
    """What a person sees at first."""

    HEALTHY = "healthy"
    DRAINING = "draining"
    OUTAGE = "outage"
    REFUSING = "refusing"
    ATTENTION = "attention"
    CLOSED = "closed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Headline:
    """The state in a word, and what it means for the data."""

    title: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Point:
    """Something that a person should look at, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Branching:
    """A thread of which two branches were found `at` a wall-clock time."""

    at: float
    thread_id: str
    kept_as: str
    deletion: bool


@dataclass(frozen=True, slots=True)
class View:
    """Everything on the page of the process `name`. `now` and `since`, when watching began, are wall-clock seconds."""

    name: str
    now: float
    since: float
    mode: Mode
    headline: Headline
    points: tuple[Point, ...]
    health: dict[str, Any]
    outages: tuple[PastOutage, ...]
    outage_goes_on: bool
    samples: tuple[Sample, ...]
    latencies: tuple[Latency, ...]
    dead_letters: tuple[dict[str, Any], ...]
    branchings: tuple[Branching, ...]
    messages: tuple[Message, ...]


def look(
    recent: Recent,
    health: dict[str, Any],
    dead_letters: Sequence[dict[str, Any]],
    *,
    name: str,
    enabled: bool,
    now: float,
) -> View:
    """The page of the process `name` as of `now`; `health` is the manager's report."""
    mode = mode_of(health, enabled=enabled)
    outages, goes_on = _outages(recent, health, now)
    return View(
        name=name,
        now=now,
        since=recent.since,
        mode=mode,
        headline=headline(mode, health),
        points=tuple(points(health, dead_letters)) if mode not in (Mode.CLOSED, Mode.OFF) else (),
        health=health,
        outages=outages,
        outage_goes_on=goes_on,
        samples=_samples(recent, now),
        latencies=recent.latencies(CALL_SECONDS),
        dead_letters=tuple(dead_letters),
        branchings=tuple(
            Branching(at, found.thread_id, found.kept_as, found.deletion) for at, found in recent.divergences()
        ),
        messages=recent.messages(),
    )


def mode_of(health: dict[str, Any], *, enabled: bool) -> Mode:
    """One word for a health report."""
    primary, journal = health["primary_checkpointer"], health["journal"]
    if not enabled:
        return Mode.OFF
    if "breaker" not in primary:
        return Mode.CLOSED
    if health["overall_status"] == "unhealthy":
        return Mode.REFUSING
    if primary["breaker"] == "open":
        return Mode.OUTAGE
    if health["primary_healthy"] and journal["pending"] and not journal["frozen_threads"]:
        return Mode.DRAINING
    return Mode.HEALTHY if health["overall_status"] == "healthy" else Mode.ATTENTION


def headline(mode: Mode, health: dict[str, Any]) -> Headline:
    """The state for a person who does not know this library."""
    backend = health["primary_checkpointer"].get("backend", "the primary")
    match mode:
        case Mode.HEALTHY:
            return Headline("Healthy", f"Checkpoints go to {backend}. Nothing waits, and there is nothing to do.")
        case Mode.DRAINING:
            return Headline(
                "Draining",
                f"{backend} takes writes again. What the journal took in the outage is being written to it, in order. "
                "Nothing is lost, and there is nothing to do but wait.",
            )
        case Mode.OUTAGE:
            kept = (
                "synced to this machine's disk first and written to the database when it is back"
                if health["journal"]["durable"]
                else "kept in memory, and lost if this process ends before the database is back"
            )
            return Headline(
                "Outage",
                f"{backend} cannot be used. Agents go on: their writes are {kept}. Threads that this process does not "
                "know cannot be read until then.",
            )
        case Mode.REFUSING:
            return Headline(
                "Writes are refused",
                f"{backend} cannot be used, and the journal does not take its place: agents fail with an error. "
                "What was acknowledged before is kept.",
            )
        case Mode.ATTENTION:
            return Headline("Running, but look here", "Agents go on. Something needs a person.")
        case Mode.CLOSED:
            return Headline(
                "Not open",
                "The checkpointer of this process is not initialized, or was closed. Nothing is read or written.",
            )
        case Mode.OFF:
            return Headline("Switched off", "CHECKPOINT_ENABLED is false: graphs run without persistence.")


def points(health: dict[str, Any], dead_letters: Sequence[dict[str, Any]]) -> Iterator[Point]:
    """What a person should look at, the most urgent first."""
    primary, journal = health["primary_checkpointer"], health["journal"]
    if primary["breaker"] == "open":
        yield Point(
            f"The database cannot be used: {primary['error'] or 'no reason is known'}",
            "Mend it; the rest happens by itself, within seconds. Do not restart this process meanwhile: what it can "
            "still read of its threads is in its memory.",
        )
    elif not primary["healthy"]:
        yield Point(
            f"The newest probe of the database failed: {primary['error']}",
            "Where a call fails, its write goes to the journal. Mend what the error names.",
        )
    if unreadable := primary["unreadable_threads"]:
        yield Point(
            f"The metadata of {several(unreadable, 'thread', 'threads')} cannot be read: the log names them",
            "Listings and retention leave them out. Mend the metadata of their newest checkpoint, or delete them.",
        )
    if journal["error"]:
        yield Point(
            f"The journal cannot be written: {journal['error']}",
            "Make its disk writable, or free space on it: without the journal, an outage refuses writes.",
        )
    fill = journal["size_bytes"] / journal["capacity_bytes"] if journal["capacity_bytes"] else 0.0
    if fill >= NOTED_FILL:
        yield Point(
            f"The journal is {fill:.0%} full",
            "When it is full, writes are refused and nothing older is dropped. Bring the database back, or raise "
            "CHECKPOINT_JOURNAL_MAX_BYTES.",
        )
    yield from _held_back(journal, dead_letters)
    for home in journal["foreign"]:
        yield Point(
            f"The journal's directory holds what ended processes left for another database: {home['home']}",
            "Start a process with that database; or, if this is the same one under another address, one with "
            "CHECKPOINT_JOURNAL_ADOPT=all.",
        )
    if count := health["divergences"]["count"]:
        yield Point(
            f"{several(count, 'thread was', 'threads were')} written by another process during an outage",
            "Both branches are kept. Look at the threads below, and decide which branch goes on.",
        )
    for name, part in health.items():
        if isinstance(part, dict) and name not in _OWN_PARTS and not part["healthy"]:
            yield Point(f"{name} is not healthy: {part.get('error') or 'its own check says so'}", "Look at it.")


_OWN_PARTS = ("primary_checkpointer", "fallback_checkpointer", "journal", "divergences")


def _held_back(journal: dict[str, Any], dead_letters: Sequence[dict[str, Any]]) -> Iterator[Point]:
    """Threads that are frozen on the journal, and why."""
    if dead_letters:
        threads = len({letter["thread_id"] for letter in dead_letters})
        refused = several(len(dead_letters), "operation was", "operations were")
        yield Point(
            f"{refused} refused by the database for good; {several(threads, 'thread is', 'threads are')} frozen",
            "What was refused is kept, and all other threads go on. Mend what the error below names; the next start of "
            "this process tries it again, in its place.",
        )
    if journal["damages"]:
        yield Point(
            f"The journal's files are damaged in {several(journal['damages'], 'place', 'places')}",
            "Threads that may lack something are frozen, and a copy of the files is in the folder `quarantine` of the "
            "journal's directory. Look at the disk.",
        )


def _samples(recent: Recent, now: float) -> tuple[Sample, ...]:
    """Oldest first, up to now."""
    gauges = recent.gauges()
    return (*recent.samples(), *([Sample(now, gauges.state, gauges.journal_pending)] if gauges is not None else []))


def _outages(recent: Recent, health: dict[str, Any], now: float) -> tuple[tuple[PastOutage, ...], bool]:
    """Newest first, with the one that goes on also where nobody listened yet when it began."""
    known = recent.outages()
    seconds = health["primary_checkpointer"].get("outage_seconds")
    if seconds is None:
        return known[::-1], False
    if not known or known[-1].seconds is not None:
        known = (*known, PastOutage(now - seconds, health["primary_checkpointer"]["error"]))
    return known[::-1], True
