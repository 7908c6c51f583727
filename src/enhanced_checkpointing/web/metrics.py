"""The library's metrics as Prometheus reads them, under the names that OpenTelemetry's conversion gives them.

Alert rules and dashboards work with this text and with a Collector's. The values come from the status page's memory,
not from an OpenTelemetry SDK: that belongs to the application, and recording into a second one would cost every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from enhanced_checkpointing.observability.metrics import COUNTERS, HISTOGRAMS, OBSERVED, SECONDS_BOUNDARIES
from enhanced_checkpointing.observability.recent import Recent, Total

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDARIES = (*map(str, SECONDS_BOUNDARIES), "+Inf")
_UNIT_NAMES = {"s": "_seconds", "By": "_bytes"}


def exposition(recent: Recent) -> str:
    """All counts since `recent` began to listen, and the current values."""
    return generate_latest(_Collected(recent)).decode()


class _Collected(Collector):
    def __init__(self, recent: Recent) -> None:
        self._recent = recent

    def collect(self) -> Iterator[Metric]:
        gauges = self._recent.gauges()
        for observed in OBSERVED:
            value = observed.read(gauges) if gauges is not None else None
            if value is not None:
                family = CounterMetricFamily if observed.total else GaugeMetricFamily
                yield family(prometheus_name(observed.name, observed.unit), observed.description, value=value)
        totals = self._recent.totals()
        for metric, unit, description in COUNTERS:
            if found := _of(metric, totals):
                counter = CounterMetricFamily(prometheus_name(metric, unit), description, labels=[*found[0].labels])
                for total in found:
                    counter.add_metric([*total.labels.values()], total.amount)
                yield counter
        for metric, description in HISTOGRAMS:
            if found := _of(metric, totals):
                histogram = HistogramMetricFamily(prometheus_name(metric, "s"), description, labels=[*found[0].labels])
                for total in found:
                    counts = zip(_BOUNDARIES, accumulate(total.buckets), strict=True)
                    histogram.add_metric([*total.labels.values()], [*counts], total.amount)
                yield histogram


def prometheus_name(name: str, unit: str) -> str:
    """The name that OpenTelemetry's conversion gives; without the `_total` of a counter."""
    return name.replace(".", "_") + _UNIT_NAMES.get(unit, "")


def _of(metric: str, totals: Iterable[Total]) -> list[Total]:
    return [total for total in totals if total.name == metric]
