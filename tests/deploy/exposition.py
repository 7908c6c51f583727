"""What a text for Prometheus holds, and what a query asks for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

ADDED_BY_PROMETHEUS = {"job", "instance"}
ADDED_BY_THE_SDK = {"otel_scope_name", "otel_scope_version", "otel_scope_schema_url"}


@dataclass
class Series:
    """The labels that the samples of one name have, each with its values."""

    labels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def series_of(texts: Iterable[str]) -> dict[str, Series]:
    """The series of the library in these texts, by name; those of Python's own process are left out."""
    found: dict[str, Series] = defaultdict(Series)
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if not sample.name.startswith("checkpointer_") or sample.name.endswith("_created"):
                    continue
                series = found[sample.name]
                for label, value in sample.labels.items():
                    if label not in ADDED_BY_THE_SDK:
                        series.labels[label].add(value)
    return found


def value_of(text: str, name: str) -> float:
    """The value of the one series of this name."""
    families = text_string_to_metric_families(text)
    (found,) = [sample.value for family in families for sample in family.samples if sample.name == name]
    return float(found)


def faults_of(query: str, known: dict[str, Series]) -> list[str]:
    """What of a query names nothing that is there: series, labels and values."""
    faults = []
    asked = list(_selectors(promql_parser.parse(query)))
    for selector in asked:
        series = known.get(selector.name)
        if series is None:
            faults.append(f"no series {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name in ADDED_BY_PROMETHEUS:
                continue
            if matcher.name not in series.labels:
                faults.append(f"{selector.name} has no label {matcher.name}")
            values = series.labels.get(matcher.name, set())
            missing = [part for part in matcher.value.split("|") if not any(re.fullmatch(part, has) for has in values)]
            faults += [f"{selector.name} never has {matcher.name}={part}" for part in missing]
    labels = {label for selector in asked if selector.name in known for label in known[selector.name].labels}
    faults += [f"no label {label}" for label in _grouping(query) if label not in labels | ADDED_BY_PROMETHEUS]
    return faults


def _grouping(query: str) -> list[str]:
    """The labels by which a query adds up or joins."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", query)
    return [label.strip() for found in lists for label in found.split(",") if label.strip()]


def _selectors(expression: Any) -> Iterator[Any]:
    """Every selection of series in an expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        inner = getattr(expression, name, None)
        if inner is not None:
            yield from _selectors(inner)
    for argument in getattr(expression, "args", ()):
        yield from _selectors(argument)
