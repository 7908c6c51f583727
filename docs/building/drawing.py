"""Boxes, arrows and words as SVG: what the pictures of the documents are made of. Lengths are in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Side = Literal["top", "bottom", "left", "right"]
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
INK, QUIET, PAPER = "#1f2933", "#8b98a5", "#ffffff"
LINE_HEIGHT = 17


@dataclass(frozen=True)
class Box:
    """A named thing; with `quiet` it is there, and has nothing to do."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: Sequence[str] = ()
    fill: str = "#eef2f6"
    edge: str = "#52606d"
    quiet: bool = False

    def at(self, side: Side, share: float = 0.5) -> tuple[float, float]:
        """A point on an edge, at this share of its length from its left or upper end."""
        if side in ("top", "bottom"):
            return self.x + self.width * share, self.y if side == "top" else self.y + self.height
        return self.x if side == "left" else self.x + self.width, self.y + self.height * share


def box(it: Box) -> str:
    """A box with its words in the middle."""
    fill, edge, ink = ("#fafbfc", "#cbd2d9", QUIET) if it.quiet else (it.fill, it.edge, INK)
    shape = (
        f'<rect x="{it.x}" y="{it.y}" width="{it.width}" height="{it.height}" rx="7" fill="{fill}" stroke="{edge}"/>'
    )
    middle = it.x + it.width / 2
    first = it.y + it.height / 2 - LINE_HEIGHT * len(it.lines) / 2 + 5
    words = [text(middle, first, it.title, ink=ink, size=15, weight=600, anchor="middle")]
    words += [
        text(middle, first + LINE_HEIGHT * (number + 1), line, ink=ink, size=13, anchor="middle")
        for number, line in enumerate(it.lines)
    ]
    return "\n".join([shape, *words])


def arrow(*points: tuple[float, float], colour: str, dashed: bool = False, thin: bool = False) -> str:
    """A line through the points, with a head at the last one."""
    path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    width = 1.4 if thin else 2.4
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash} '
        f'marker-end="url(#{_marker(colour)})"/>'
    )


def vertical(start: Box, end: Box, x: float, *, colour: str, dashed: bool = False, thin: bool = False) -> str:
    """An arrow straight up or down from box to box, at this `x` of the picture."""
    falls = start.y < end.y
    begins, ends = (start.at("bottom"), end.at("top")) if falls else (start.at("top"), end.at("bottom"))
    return arrow((x, begins[1]), (x, ends[1]), colour=colour, dashed=dashed, thin=thin)


def text(
    x: float, y: float, words: str, *, ink: str = INK, size: float = 12, weight: int = 400, anchor: str = "start"
) -> str:
    """One line of words; `y` is its base line."""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{ink}" font-size="{size:g}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )


def cross(x: float, y: float, colour: str) -> str:
    """What does not go through here."""
    stroke = f'stroke="{colour}" stroke-width="3.5" stroke-linecap="round"'
    return f'<path d="M{x - 7},{y - 7} L{x + 7},{y + 7} M{x - 7},{y + 7} L{x + 7},{y - 7}" {stroke}/>'


def panel(x: float, y: float, width: float, height: float, edge: str) -> str:
    """The ground of one part of a picture."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="12" fill="{PAPER}" stroke="{edge}"/>'


def picture(width: int, height: int, parts: Sequence[str], *, title: str, colours: Sequence[str]) -> str:
    """The whole SVG. `title` is what it says to those who cannot see it; `colours` are those of its arrows."""
    heads = "\n".join(
        f'<marker id="{_marker(colour)}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L10,5 L0,10 z" fill="{colour}"/></marker>'
        for colour in colours
    )
    ground = f'<rect width="{width}" height="{height}" rx="14" fill="#f5f7fa"/>'
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="{escape(FONT)}">'
    )
    return "\n".join(
        [opening, f"<title>{escape(title)}</title>", f"<defs>\n{heads}\n</defs>", ground, *parts, "</svg>\n"]
    )


def _marker(colour: str) -> str:
    return "head-" + colour.removeprefix("#")
