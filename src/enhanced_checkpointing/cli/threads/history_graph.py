"""The tree of checkpoints as lines of text, newest first, as `git log --graph` draws one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Node", "Row", "drawn", "short_length"]

SHORTEST = 13
"""Characters of an id that is a UUIDv6: so many tell times apart that differ by half a millisecond."""


@dataclass(frozen=True, slots=True)
class Node:
    """A checkpoint and its parent."""

    checkpoint_id: str
    parent_id: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the drawing; without a node it only joins branches, or leads on to more text of the node above."""

    lines: str
    node: int | None = None
    """The position of its node in what was given."""
    below: str = ""
    """How the lines go on under a node, for a second line of its text."""


def drawn(nodes: Sequence[Node]) -> Iterator[Row]:
    """Draw nodes that are given newest first: every parent comes after its children, or not at all."""
    lanes: list[str | None] = []
    for number, node in enumerate(nodes):
        mine = [place for place, waits in enumerate(lanes) if waits == node.checkpoint_id]
        for extra in reversed(mine[1:]):
            yield Row(_joining(lanes, mine[0], extra))
            lanes[extra] = None
            _trim(lanes)
        place = mine[0] if mine else _free(lanes)
        lanes[place] = node.checkpoint_id
        lines = _plain(lanes, place)
        lanes[place] = node.parent_id
        _trim(lanes)
        yield Row(lines, number, _plain(lanes))


def short_length(checkpoint_ids: Sequence[str]) -> int:
    """How many characters of these ids tell them apart."""
    ordered = sorted(set(checkpoint_ids))
    alike = (_common(one, other) for one, other in pairwise(ordered))
    return max(SHORTEST, max(alike, default=0) + 1)


def _common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))


def _free(lanes: list[str | None]) -> int:
    if None in lanes:
        return lanes.index(None)
    lanes.append(None)
    return len(lanes) - 1


def _trim(lanes: list[str | None]) -> None:
    while lanes and lanes[-1] is None:
        lanes.pop()


def _plain(lanes: Sequence[str | None], star: int | None = None) -> str:
    marks = ("*" if place == star else "|" if waits is not None else " " for place, waits in enumerate(lanes))
    return " ".join(marks).rstrip()


def _joining(lanes: Sequence[str | None], into: int, extra: int) -> str:
    """The line on which the branch in column `extra` joins that in column `into`."""
    marks = list(_plain([None if place == extra else waits for place, waits in enumerate(lanes)]).ljust(2 * extra))
    for gap in range(2 * into + 1, 2 * extra - 1):
        if marks[gap] == " ":
            marks[gap] = "_"
    marks[2 * extra - 1] = "/"
    return "".join(marks).rstrip()
