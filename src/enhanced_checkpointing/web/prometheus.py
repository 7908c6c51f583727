"""The library's metrics as Prometheus reads them, under the names that OpenTelemetry's conversion gives them.

So alert rules and dashboards hold for this text and for what a Collector makes of the same metrics. It is written here,
and not by an SDK, since that must be the application's own, and since recording into a second one costs every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from enhanced_checkpointing.observability.instruments import COUNTERS, HISTOGRAMS, OBSERVED, SECONDS_BOUNDARIES
from enhanced_checkpointing.observability.recent import Recent, Total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Lines = Callable[[str, Total], Iterable[str]]

_UNIT_NAMES = {"s": "_seconds", "By": "_bytes"}


def exposition(recent: Recent) -> str:
    """Everything that was counted since `recent` listens, and what is true now."""
    lines: list[str] = []
    totals = recent.totals()
    gauges = recent.gauges()
    for observed in OBSERVED:
        value = observed.read(gauges) if gauges is not None else None
        if value is not None:
            name = prometheus_name(observed.name, observed.unit, total=observed.total)
            lines += _head(name, "counter" if observed.total else "gauge", observed.description)
            lines.append(_sample(name, {}, value))
    for metric, unit, description in COUNTERS:
        name = prometheus_name(metric, unit, total=True)
        lines += _family(name, "counter", description, _of(metric, totals), _counter)
    for metric, description in HISTOGRAMS:
        name = prometheus_name(metric, "s")
        lines += _family(name, "histogram", description, _of(metric, totals), _histogram)
    return "\n".join([*lines, ""])


def prometheus_name(name: str, unit: str, *, total: bool = False) -> str:
    """What OpenTelemetry's conversion makes of a metric of this name and unit."""
    return name.replace(".", "_") + _UNIT_NAMES.get(unit, "") + ("_total" if total else "")


def _of(metric: str, totals: Iterable[Total]) -> list[Total]:
    return [total for total in totals if total.name == metric]


def _family(name: str, kind: str, description: str, totals: list[Total], lines_of: _Lines) -> list[str]:
    if not totals:
        return []
    return [*_head(name, kind, description), *(line for total in totals for line in lines_of(name, total))]


def _head(name: str, kind: str, description: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _counter(name: str, total: Total) -> Iterable[str]:
    return [_sample(name, total.labels, total.amount)]


def _histogram(name: str, total: Total) -> Iterable[str]:
    count = 0
    for boundary, values in zip((*SECONDS_BOUNDARIES, "+Inf"), total.buckets, strict=True):
        count += values
        yield _sample(f"{name}_bucket", {**total.labels, "le": str(boundary)}, count)
    yield _sample(f"{name}_count", total.labels, count)
    yield _sample(f"{name}_sum", total.labels, total.amount)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{shown}}} {float(value)}" if shown else f"{name} {float(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
