"""The content of the status page, decided from values: the state, its meaning for the data, the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

from enhanced_checkpointing.observability.events import Diverged, SystemState
from enhanced_checkpointing.observability.recent import Latency, Message, PastOutage, Recent, Sample

CALL_SECONDS = 300.0
"""How far back the calls are looked at, in seconds."""

NOTED_FILL = 0.5
"""The share of its room from which a filling journal is pointed out; its first alarm is there, too."""

DEPTHS = ((60.0, "60 seconds"), (300.0, "5 minutes"), (1_800.0, "30 minutes"))
STRIPS = (
    *((120.0, "2 minutes"), (900.0, "15 minutes"), (3_600.0, "60 minutes"), (21_600.0, "6 hours")),
    (86_400.0, "24 hours"),
)
"""How far back the drawings go: the shortest of these times that shows all that was seen, else the longest."""

WIDTH, DEPTH_HEIGHT, STRIP_HEIGHT = 1000, 140, 24
NARROWEST = 4.0
"""Units of the drawings. Nothing is drawn narrower, or a short outage would not be seen."""


class Mode(StrEnum):
    """The state in one word."""

    HEALTHY = "healthy"
    DRAINING = "draining"
    OUTAGE = "outage"
    REFUSING = "refusing"
    ATTENTION = "attention"
    CLOSED = "closed"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Headline:
    """The state as a title, and its meaning for the data."""

    title: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Point:
    """A problem, and how to solve it."""

    what: str
    remedy: str


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
    divergences: tuple[tuple[float, Diverged], ...]
    messages: tuple[Message, ...]

    @property
    def is_open(self) -> bool:
        return self.mode not in (Mode.CLOSED, Mode.OFF)

    def goes_on(self, outage: PastOutage) -> bool:
        """Whether this is the outage of now: the newest, if it has no end and the breaker is open."""
        return self.outage_goes_on and outage is self.outages[0]


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
        divergences=recent.divergences(),
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
    """The state in words for readers who do not know this library."""
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
            return Headline("Running, with problems", "Agents keep running. Investigate the points below.")
        case Mode.CLOSED:
            return Headline(
                "Not open",
                "The checkpointer of this process is not initialized, or was closed. Nothing is read or written.",
            )
        case Mode.OFF:
            return Headline("Switched off", "CHECKPOINT_ENABLED is false: graphs run without persistence.")


def points(health: dict[str, Any], dead_letters: Sequence[dict[str, Any]]) -> Iterator[Point]:
    """All problems, the most urgent first."""
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
            "Writes that fail go to the journal. Mend what the error names.",
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
    if (fill := _fill(journal)) >= NOTED_FILL:
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
    """Threads that are frozen on the journal, and the reasons."""
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
    """Newest first. An outage that goes on is among them even if it began before `recent` listened."""
    known = recent.outages()
    seconds = health["primary_checkpointer"].get("outage_seconds")
    if seconds is None:
        return known[::-1], False
    if not known or known[-1].seconds is not None:
        known = (*known, PastOutage(now - seconds, health["primary_checkpointer"]["error"]))
    return known[::-1], True


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the large figures: its name, its value, notes below it, and the share of room taken where it has one."""

    name: str
    value: str
    notes: tuple[str, ...]
    alarming: bool = False
    fill: float | None = None


def figures(health: dict[str, Any]) -> tuple[Figure, ...]:
    """The large figures of an open manager."""
    primary, journal = health["primary_checkpointer"], health["journal"]
    standby, divergences = health["fallback_checkpointer"], health["divergences"]
    if primary["breaker"] == "open":
        state, since = "Down", f"for {span(primary['outage_seconds'] or 0.0)}"
    else:
        state, since = ("Takes writes", "") if primary["healthy"] else ("Fails", "at the newest probe")
    pool = primary["pool"]
    connections = f"{pool.get('size', 0)} of {pool['max']} connections" if "max" in pool else ""
    waits = f"the oldest for {span(journal['oldest_age_seconds'])}" if journal["pending"] else "nothing waits"
    where = {"durable": "on disk", "memory": "in memory only", "off": "switched off"}[journal["mode"]]
    taken = f"{size(journal['size_bytes'])} of {size(journal['capacity_bytes'])}, {where}"
    letters, frozen = journal["dead_letters"], journal["frozen_threads"]
    threads = several(frozen, "frozen thread", "frozen threads") if frozen else "no thread is frozen"
    diverged = several(divergences["count"], "divergence", "divergences")
    return (
        Figure(f"Database ({primary['backend']})", state, (since, connections), alarming=not primary["healthy"]),
        Figure("In the journal", f"{journal['pending']:,}", (waits, taken), fill=_fill(journal)),
        Figure(
            *("Warm copies", f"{standby['warm_threads']:,}"),
            ("threads, readable in an outage", size(standby["size_bytes"])),
        ),
        Figure("Dead letters", f"{letters:,}", (threads, diverged), alarming=bool(letters or frozen)),
    )


def _fill(journal: dict[str, Any]) -> float:
    return float(journal["size_bytes"] / journal["capacity_bytes"]) if journal["capacity_bytes"] else 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of full height; `kind` chooses its colour."""

    kind: str
    x: float
    width: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Bars and a curve. `reach` is its time span in words, `count` the most operations that waited or the outages."""

    reach: str
    count: int
    bars: tuple[Bar, ...]
    curve: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """The time span that a drawing of `WIDTH` units shows."""

    start: float
    end: float

    def x(self, at: float) -> float:
        share = (at - self.start) / (self.end - self.start)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)


def depth(view: View) -> Drawing | None:
    """The journal's backlog on bands that show the state; None if it was empty throughout a healthy time."""
    window, reach = _reaching(view.now, min((sample.at for sample in view.samples), default=view.now), DEPTHS)
    before = [sample for sample in view.samples if sample.at < window.start][-1:]  # says how the window began
    samples = [*before, *(sample for sample in view.samples if sample.at >= window.start)]
    most = max((sample.pending for sample in samples), default=0)
    if not most and all(sample.state is SystemState.HEALTHY for sample in samples):
        return None
    room = DEPTH_HEIGHT - 12  # the top is a little above the largest number
    curve = (
        (window.x(sample.at), round(DEPTH_HEIGHT - 1 - room * sample.pending / max(most, 1), 1)) for sample in samples
    )
    return Drawing(reach, most, tuple(_bands(samples, window)), tuple(curve))


def strip(view: View) -> Drawing:
    """The outages on a line."""
    first = min([view.since, *(outage.started_at for outage in view.outages)])
    window, reach = _reaching(view.now, first, STRIPS)
    shown = [outage for outage in view.outages if outage_end(outage, view) > window.start]
    unseen = (Bar("quiet", 0, WIDTH), Bar("unseen", 0, window.x(view.since)))
    return Drawing(reach, len(shown), (*unseen, *(bar for outage in shown for bar in _bars(outage, view, window))))


def _reaching(now: float, first: float, choices: Sequence[tuple[float, str]]) -> tuple[Window, str]:
    seconds, words = next((choice for choice in choices if now - first <= choice[0]), choices[-1])
    return Window(now - seconds, now), words


def outage_end(outage: PastOutage, view: View) -> float:
    """Its end; now, if it goes on; the last known time, if this process did not see its end."""
    if outage.seconds is not None:
        return outage.started_at + outage.seconds
    return view.now if view.goes_on(outage) else outage.started_at + (outage.down or 0.0)


def _bars(outage: PastOutage, view: View, window: Window) -> Iterator[Bar]:
    """Until the database was back in one colour, until the journal was drained in another."""
    end = outage_end(outage, view)
    back = end if outage.down is None else min(end, outage.started_at + outage.down)
    left, middle, right = window.x(outage.started_at), window.x(back), window.x(end)
    width = max(NARROWEST, middle - left)
    yield Bar("outage", min(left, WIDTH - width), width, span(end - outage.started_at))
    if right - left > width:
        yield Bar("draining", left + width, right - left - width)


def _bands(samples: Sequence[Sample], window: Window) -> Iterator[Bar]:
    """One band for each run of samples in the same state, except healthy ones."""
    stretches = [next(stretch) for _, stretch in groupby(samples, key=attrgetter("state"))]
    for first, end in pairwise([*((first, first.at) for first in stretches), (None, window.end)]):
        if first[0] is not None and first[0].state is not SystemState.HEALTHY:
            left = window.x(first[1])
            yield Bar(first[0].state.name.lower(), left, max(window.x(end[1]) - left, 1.0))


# Times, sizes and numbers for people

_SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def span(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return _in_two(whole, (60, "min"), (1, "s"))
    if whole < 86_400:
        return _in_two(whole, (3_600, "h"), (60, "min"))
    return _in_two(whole, (86_400, "d"), (3_600, "h"))


def _in_two(whole: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    rest = whole % large[0] // small[0]
    return f"{whole // large[0]} {large[1]}" + (f" {rest} {small[1]}" if rest else "")


def several(count: int, one: str, many: str) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many}"


def size(count: float) -> str:
    """Bytes."""
    for unit in _SIZES[:-1]:
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} {_SIZES[-1]}"


def clock(at: float) -> str:
    """The time of day."""
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")


def moment(at: float, now: float) -> str:
    """The time of day; with the date, if that is not the one of `now`."""
    then, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    return then.strftime("%H:%M:%S" if then.date() == today.date() else "%d %b %H:%M:%S")


def exact(at: float) -> str:
    """The time for machines."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
