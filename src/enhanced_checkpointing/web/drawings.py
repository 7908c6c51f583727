"""The two pictures of the status page, as SVG: what waits in the journal, and when there were outages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from operator import attrgetter

from enhanced_checkpointing.observability.events import SystemState
from enhanced_checkpointing.observability.recent import PastOutage, Sample
from enhanced_checkpointing.web.view import View
from enhanced_checkpointing.web.words import span

DEPTHS = ((60.0, "60 seconds"), (300.0, "5 minutes"), (1_800.0, "30 minutes"))
STRIPS = (
    *((120.0, "2 minutes"), (900.0, "15 minutes"), (3_600.0, "60 minutes"), (21_600.0, "6 hours")),
    (86_400.0, "24 hours"),
)
"""How far back the drawings go: the shortest of these times that shows all that was seen, else the longest."""

_WIDTH, _HEIGHT, _STRIP = 1000, 140, 24
_NARROWEST = 4.0
"""Nothing is drawn narrower, or a short outage would not be seen."""

_BANDS = {SystemState.OUTAGE: "outage", SystemState.DRAINING: "draining"}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time on a drawing of `_WIDTH` units."""

    start: float
    end: float

    def x(self, at: float) -> float:
        share = (at - self.start) / (self.end - self.start)
        return round(_WIDTH * min(1.0, max(0.0, share)), 1)


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG, how far back it goes in words, and what stands out: the most that waited, or how many outages."""

    svg: str
    reach: str
    count: int


def depth(view: View) -> Drawing | None:
    """What waited in the journal, on bands that show its state; None where there is nothing to see."""
    window, reach = _reaching(view.now, min((sample.at for sample in view.samples), default=view.now), DEPTHS)
    samples = _within(view.samples, window)
    most = max((sample.pending for sample in samples), default=0)
    if not most and all(sample.state is SystemState.HEALTHY for sample in samples):
        return None
    points = [(window.x(sample.at), _y(sample.pending, most)) for sample in samples]
    steps = f"M{points[0][0]} {points[0][1]}" + "".join(f"H{x}V{y}" for x, y in points[1:]) + f"H{_WIDTH}"
    curve = f'<path class="area" d="{steps}V{_HEIGHT}H{points[0][0]}Z"/><path class="line" d="{steps}"/>'
    label = f"What waited in the journal in the last {reach}: at most {most:,} operations"
    return Drawing(_svg("drawing", _HEIGHT, label, [*_bands(samples, window), curve]), reach, most)


def strip(view: View) -> Drawing:
    """The outages on a line."""
    first = min([view.since, *(outage.started_at for outage in view.outages)])
    window, reach = _reaching(view.now, first, STRIPS)
    shown = [outage for outage in view.outages if outage_end(outage, view) > window.start]
    drawn = [
        f'<rect class="quiet" width="{_WIDTH}" height="{_STRIP}"/>',
        f'<rect class="unseen" width="{window.x(view.since)}" height="{_STRIP}"/>',
        *(_bar(outage, view, window) for outage in shown),
    ]
    return Drawing(_svg("drawing strip", _STRIP, f"{len(shown)} outages in the last {reach}", drawn), reach, len(shown))


def _reaching(now: float, first: float, choices: Sequence[tuple[float, str]]) -> tuple[Window, str]:
    seconds, words = next((choice for choice in choices if now - first <= choice[0]), choices[-1])
    return Window(now - seconds, now), words


def _svg(classes: str, height: int, label: str, drawn: Sequence[str]) -> str:
    """Stretched to the width of the page, so it holds no text."""
    box = f'viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none"'
    return f'<svg class="{classes}" {box} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def outage_end(outage: PastOutage, view: View) -> float:
    """When it was over; now, for the one that goes on. The end of one that nobody saw is when it was last known."""
    if outage.seconds is not None:
        return outage.started_at + outage.seconds
    if view.outage_goes_on and outage is view.outages[0]:
        return view.now
    return outage.started_at + (outage.down or 0.0)


def _bar(outage: PastOutage, view: View, window: Window) -> str:
    """Until the database was back in one colour, until the journal was drained in another."""
    end = outage_end(outage, view)
    back = end if outage.down is None else min(end, outage.started_at + outage.down)
    left, middle, right = window.x(outage.started_at), window.x(back), window.x(end)
    width = max(_NARROWEST, middle - left)
    bar = f'<rect class="outage" x="{min(left, _WIDTH - width)}" width="{width:.1f}" height="{_STRIP}">'
    bar += f"<title>{span(end - outage.started_at)}</title></rect>"
    if right - left > width:
        bar += f'<rect class="draining" x="{left + width:.1f}" width="{right - left - width:.1f}" height="{_STRIP}"/>'
    return bar


def _within(samples: Sequence[Sample], window: Window) -> list[Sample]:
    """Those of the window, and the last one before it, which says how it began."""
    inside = [sample for sample in samples if sample.at >= window.start]
    before = [sample for sample in samples if sample.at < window.start]
    return [*before[-1:], *inside]


def _bands(samples: Sequence[Sample], window: Window) -> Iterator[str]:
    """One for each stretch of samples of the same state, up to the first of another."""
    stretches = [next(stretch) for _, stretch in groupby(samples, key=attrgetter("state"))]
    ends = [*(first.at for first in stretches[1:]), window.end]
    for first, end in zip(stretches, ends, strict=True):
        name, left = _BANDS.get(first.state), window.x(first.at)
        if name is not None:
            width = max(window.x(end) - left, 1.0)
            yield f'<rect class="{name}" x="{left}" width="{width:.1f}" height="{_HEIGHT}"/>'


def _y(pending: int, most: int) -> float:
    """From the top, which is a little above the largest number."""
    return round(_HEIGHT - 1 - (_HEIGHT - 12) * pending / max(most, 1), 1)
