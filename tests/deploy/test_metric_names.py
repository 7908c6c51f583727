"""Alerts and dashboard ask for what the library really emits, in a real outage of a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.deploy.exposition import Series, faults_of, series_of, value_of
from tests.deploy.parts import ROOT, panel_queries, rules, tool
from tests.support.application_faults import Faults
from tests.support.fault_proxy import ThreadedFaultProxy
from tests.support.otlp import METRIC_UNITS, environment_of
from tests.support.postgres import PostgresServer, fresh_database

MOMENTS = ("healthy", "outage", "after")

QUERIES = [(rule["alert"], rule["expr"]) for rule in rules()] + panel_queries()
PROMETHEUS_S_OWN = {"ALERTS": Series({"alertname": {rule["alert"] for rule in rules()}, "alertstate": {"firing"}})}


@pytest.fixture(scope="module")
def texts(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the texts that one application shows over its life."""
    folder = tmp_path_factory.mktemp("texts")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with fresh_database(postgres_server.url()) as url:
        parts = urlsplit(url)
        with ThreadedFaultProxy(str(parts.hostname), parts.port or 5432) as proxy:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.deploy.application", proxy.url(url), folder],
                env=environment_of(PYTHONPATH=path),
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            Faults(url, proxy).serve(process)
        yield folder


def shown(texts: Path, source: str) -> dict[str, Series]:
    """The series of one source over all moments."""
    return series_of((texts / f"{moment}.{source}.txt").read_text() for moment in MOMENTS)


@pytest.mark.parametrize("source", ["sdk", "served"])
def test_every_query_asks_for_series_labels_and_values_that_are_there(texts: Path, source: str) -> None:
    known = shown(texts, source) | PROMETHEUS_S_OWN
    excused = "checkpointer_operations_total never has outcome=error"  # that takes a mistake of ours, and no outage
    found = {name: [fault for fault in faults_of(query, known) if fault != excused] for name, query in QUERIES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_query_for_what_is_not_there_is_found(texts: Path) -> None:
    known = shown(texts, "sdk")
    assert faults_of("checkpointer_stat == 2", known) == ["no series checkpointer_stat"]
    assert faults_of('checkpointer_state{thread_id="a"}', known) == [
        "checkpointer_state has no label thread_id",
        "checkpointer_state never has thread_id=a",
    ]
    assert faults_of('rate(checkpointer_operations_total{outcome=~"primary|lost"}[1m])', known) == [
        "checkpointer_operations_total never has outcome=lost"
    ]
    assert faults_of("sum by (queue) (checkpointer_state)", known) == ["no label queue"]


def test_what_metrics_serves_has_the_names_and_labels_that_opentelemetry_makes(texts: Path) -> None:
    assert {name: series.labels for name, series in shown(texts, "served").items()} == {
        name: series.labels for name, series in shown(texts, "sdk").items()
    }


@pytest.mark.parametrize("source", ["sdk", "served"])
def test_metrics_that_alerts_watch_tell_what_happened(texts: Path, source: str) -> None:
    moments = {moment: (texts / f"{moment}.{source}.txt").read_text() for moment in MOMENTS}

    def seen(name: str) -> list[float]:
        return [value_of(moments[moment], f"checkpointer_{name}") for moment in MOMENTS]

    assert seen("state") == [0, 2, 1], "one thread is frozen, so that the drain does not end"
    assert seen("journal_writable") == [1, 1, 1]
    assert seen("breaker_openings_total") == [0, 1, 1]
    assert seen("journal_dead_letters") == seen("journal_frozen_threads") == [0, 0, 1]
    assert seen("journal_damages") == [0, 0, 0]
    assert value_of(moments["after"], "checkpointer_reconcile_divergences_total") == 1
    healthy, outage, after = seen("journal_utilization")
    assert healthy < after < outage < 0.001, "a share of 256 MiB"
    assert seen("journal_pending")[1] > seen("journal_pending")[2] > seen("journal_pending")[0] == 0


def test_every_metric_of_the_library_was_seen(texts: Path) -> None:
    seen = shown(texts, "sdk").keys()
    for name in METRIC_UNITS:
        assert any(found.startswith(name.replace(".", "_")) for found in seen), name


@pytest.mark.parametrize("source", ["sdk", "served"])
def test_prometheus_finds_nothing_wrong_with_the_text(texts: Path, source: str) -> None:
    text = (texts / f"after.{source}.txt").read_text()
    own = [line for line in text.splitlines() if "checkpointer_" in line and "_created" not in line]
    ran = subprocess.run(
        [tool("promtool"), "check", "metrics"], input="\n".join([*own, ""]), capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
