"""Draws docs/images/architecture.svg, one call in three times: `python -m docs.building.architecture --write`."""

from __future__ import annotations

from dataclasses import replace

from docs.building.drawing import INK, QUIET, Box, arrow, box, cross, panel, picture, text, vertical
from docs.building.writing import DOCS, write_or_print

PICTURE = DOCS / "images" / "architecture.svg"
WRITE, READ, ASK, FAIL = "#1f6feb", "#1a7f4b", "#8250df", "#cf222e"
WIDTH, HEIGHT = 1324, 640
PANEL, GAP, TOP = 424, 13, 20
BOTTOM = 560
"""Where a panel ends; below it stands what the colours mean."""
DOWN, UP, OUTER_LEFT, OUTER_RIGHT = 198, 226, 112, 318
"""Where in a panel the arrows run from row to row."""


class House:
    """The boxes of one panel, in the same places in each."""

    def __init__(self, column: int) -> None:
        self.left = GAP + column * (PANEL + GAP)
        self.graph = self._box(132, 62, 160, 44, "Graph", ["LangGraph"], fill="#fff8e6", edge="#b7791f")
        self.engine = self._box(82, 148, 260, 58, "Engine", ["where does this call go?"])
        self.warm = self._box(14, 286, 124, 74, "Warm copy", ["recent threads,", "in memory"], fill="#e8f5ee")
        self.guard = self._box(156, 286, 112, 74, "Guard", ["deadline, retry,", "breaker"])
        self.journal = self._box(286, 286, 124, 74, "Journal", ["on a local disk,", "synced"], fill="#e6f0fd")
        self.prober = self._box(14, 444, 124, 64, "Prober", ["does it take", "writes?"])
        self.primary = self._box(156, 444, 112, 64, "Primary", ["the truth"], fill="#dde7f2", edge="#243b53")
        self.reconciler = self._box(286, 444, 124, 64, "Reconciler", ["replays,", "in order"])

    def _box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        title: str,
        lines: list[str],
        fill: str = "#eef2f6",
        edge: str = "#52606d",
    ) -> Box:
        return Box(self.left + x, TOP + y, width, height, title, lines, fill, edge)

    def frame(self, title: str, edge: str) -> list[str]:
        """The panel itself, the graph that calls, and what it is called."""
        return [
            panel(self.left, TOP, PANEL, BOTTOM - TOP, edge),
            text(self.left + PANEL / 2, TOP + 36, title, size=17, weight=700, anchor="middle"),
            self.between(self.graph, self.engine, PANEL / 2, INK),
            box(self.graph),
            box(self.engine),
        ]

    def between(self, start: Box, end: Box, x: float, colour: str, *, dashed: bool = False, thin: bool = False) -> str:
        """An arrow straight up or down."""
        return vertical(start, end, self.left + x, colour=colour, dashed=dashed, thin=thin)

    def through_the_guard(self) -> list[str]:
        """A call that goes to the primary, and its answer."""
        return [
            self.between(self.engine, self.guard, DOWN, WRITE),
            self.between(self.guard, self.primary, DOWN, WRITE),
            self.between(self.primary, self.guard, UP, READ),
            self.between(self.guard, self.engine, UP, READ),
        ]

    def probe(self, words: str) -> str:
        """What the prober does, which it does all the time."""
        asks = arrow(self.prober.at("right"), self.primary.at("left"), colour=ASK, dashed=True, thin=True)
        return asks + self.note(76, 526, [words], ASK, anchor="middle")

    def note(self, x: float, y: float, lines: list[str], colour: str = INK, anchor: str = "start") -> str:
        """Small words inside the panel, relative to its corner."""
        return "\n".join(
            text(self.left + x, TOP + y + 16 * at, line, ink=colour, size=13, anchor=anchor)
            for at, line in enumerate(lines)
        )


def healthy() -> list[str]:
    """Everything goes to the primary; the warm copy learns from each answer."""
    here = House(0)
    return [
        *here.frame("Healthy", "#2da06a"),
        *here.through_the_guard(),
        here.between(here.engine, here.warm, OUTER_LEFT, READ, dashed=True, thin=True),
        here.probe("every 5 s"),
        *(box(each) for each in (here.warm, here.guard, here.primary, here.prober)),
        *(box(replace(each, quiet=True)) for each in (here.journal, here.reconciler)),
        here.note(OUTER_LEFT - 8, 243, ["learns of", "each call"], READ, anchor="end"),
        here.note(348, 378, ["empty"], QUIET, anchor="middle"),
        here.note(DOWN - 8, 398, ["writes of all threads", "gather to one commit"], WRITE, anchor="end"),
    ]


def outage() -> list[str]:
    """Nothing touches the primary but the prober; writes are on the disk before they are acknowledged."""
    here = House(1)
    below = here.journal.y + 98
    around = [(here.journal.at("bottom")[0], below), (here.warm.at("bottom")[0], below), here.warm.at("bottom")]
    return [
        *here.frame("Outage", FAIL),
        here.between(here.engine, here.journal, OUTER_RIGHT, WRITE),
        here.between(here.warm, here.engine, OUTER_LEFT, READ),
        arrow(here.journal.at("bottom"), *around, colour=READ, dashed=True, thin=True),
        here.probe("0.5 s to 15 s apart"),
        *(box(each) for each in (here.warm, here.journal, here.prober)),
        box(replace(here.guard, lines=["breaker open"], edge=FAIL)),
        box(replace(here.primary, lines=["down"], fill="#fdebec", edge=FAIL)),
        box(replace(here.reconciler, quiet=True)),
        cross(here.guard.at("top")[0], here.guard.y - 24, FAIL),
        here.note(OUTER_LEFT - 8, 232, ["reads: what", "is known", "for certain"], READ, anchor="end"),
        here.note(OUTER_RIGHT + 8, 232, ["writes: first", "on the disk,", "then done"], WRITE),
        here.note(212, 402, ["then the warm copy has them, too"], READ, anchor="middle"),
    ]


def afterwards() -> list[str]:
    """A thread is drained before anything else of it goes to the primary; all others go there at once."""
    here = House(2)
    return [
        *here.frame("After it: the drain", "#1f6feb"),
        *here.through_the_guard(),
        here.between(here.engine, here.journal, OUTER_RIGHT, WRITE, dashed=True),
        here.between(here.journal, here.reconciler, 348, WRITE),
        arrow(here.reconciler.at("left"), here.primary.at("right"), colour=WRITE),
        here.probe("closes the breaker"),
        *(box(each) for each in (here.warm, here.guard, here.journal, here.primary, here.prober, here.reconciler)),
        here.note(DOWN - 8, 240, ["threads with", "nothing waiting"], WRITE, anchor="end"),
        here.note(OUTER_RIGHT + 8, 240, ["threads with", "some waiting"], WRITE),
        here.note(356, 398, ["oldest", "first"], WRITE),
        here.note(342, 526, ["some threads at a time"], anchor="middle"),
    ]


def legend() -> list[str]:
    """What the colours mean."""
    entries = [(WRITE, "a write", False), (READ, "an answer", False), (ASK, "a probe: can it be written?", True)]
    parts, x = [], 360.0
    for colour, words, dashed in entries:
        parts += [arrow((x, 600), (x + 46, 600), colour=colour, dashed=dashed), text(x + 56, 605, words, size=14)]
        x += 56 + 7.8 * len(words) + 48
    return parts


def drawing() -> str:
    """The whole picture."""
    title = (
        "The path of a call. Healthy: graph, engine, guard, primary; the warm copy learns from each answer. In an "
        "outage: writes go to the journal on the local disk, reads to the warm copy; only the prober asks the primary. "
        "After it: the reconciler replays the journal into the primary, and each thread goes back when it is done."
    )
    parts = [*healthy(), *outage(), *afterwards(), *legend()]
    return picture(WIDTH, HEIGHT, parts, title=title, colours=[WRITE, READ, ASK, INK])


if __name__ == "__main__":
    write_or_print(PICTURE, drawing())
