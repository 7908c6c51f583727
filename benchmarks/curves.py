"""Draws what the callers see as their number grows: `python -m benchmarks.curves FIGURES.json FOLDER`.

FIGURES.json is what `python -m benchmarks --json` writes; with `--write` the curves are drawn anyway.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.laboratory import DELAYED, LOOPBACK, WAYS
from benchmarks.promises import PROMISES

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "enhanced-checkpointing",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
}
COLOURS = {LOOPBACK: "#1f5fa8", DELAYED: "#c4562a"}
NAMES = {LOOPBACK: "loopback", DELAYED: "2 ms of round trip"}
SIZE_INCHES = (7.0, 4.4)


def draw(figures: Mapping[str, float], folder: Path) -> list[Path]:
    """Draw both curves into `folder`; none where writes were not measured."""
    if not _points(figures, LOOPBACK, "ratio"):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [_ratio(figures, folder / "writes-ratio.svg"), _throughput(figures, folder / "writes-per-second.svg")]


def _ratio(figures: Mapping[str, float], file: Path) -> Path:
    with mpl.rc_context(STYLE):
        figure, axes = _axes("Writes to PostgreSQL: how many times as fast as the bare saver")
        for way in WAYS:
            points = _points(figures, way, "ratio")
            axes.plot(*zip(*points, strict=True), marker="o", color=COLOURS[way], label=NAMES[way])
            promised = [
                (int(match[1]), promise.threshold)
                for promise in PROMISES
                if (match := re.fullmatch(rf"writes/{way}/(\d+)/ratio", promise.figure))
            ]
            axes.plot(*zip(*promised, strict=True), "_", markersize=14, color=COLOURS[way], label="promised")
        axes.axhline(1.0, color="#888888", linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ratio of operations per second")
        return _save(figure, axes, [callers for callers, _ in points], file)


def _throughput(figures: Mapping[str, float], file: Path) -> Path:
    with mpl.rc_context(STYLE):
        figure, axes = _axes("Writes to PostgreSQL: operations per second")
        for way in WAYS:
            for name, title, line in (("our_per_second", "ours", "-"), ("bare_per_second", "bare saver", ":")):
                points = _points(figures, way, name)
                label = f"{title}, {NAMES[way]}"
                axes.plot(*zip(*points, strict=True), marker="o", linestyle=line, color=COLOURS[way], label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("operations per second")
        return _save(figure, axes, [callers for callers, _ in points], file)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xscale("log")
    axes.set_xlabel("callers at once, each with a thread of its own")
    return figure, axes


def _save(figure: Figure, axes: Axes, callers: list[int], file: Path) -> Path:
    axes.set_xticks(callers, [f"{count:,}" for count in callers])
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file


def _points(figures: Mapping[str, float], way: str, name: str) -> list[tuple[int, float]]:
    """(callers, value), in the order of the callers."""
    pattern = re.compile(rf"writes/{way}/(\d+)/{name}")
    return sorted((int(match[1]), value) for figure, value in figures.items() if (match := pattern.fullmatch(figure)))


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
