"""The benchmarks run: a short one of the whole way from the server to the table and the promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.promises import Promise
from benchmarks.stages import stages
from tests.support.postgres import postgres_binaries

ROOT = Path(__file__).parents[2]


def test_quick_benchmark_of_writes_prints_its_tables_and_writes_its_figures(tmp_path: Path) -> None:
    postgres_binaries()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "writes"]
    ran = subprocess.run(
        [*command, "--json", str(tmp_path / "figures.json")], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    assert "Writes to PostgreSQL, on loopback" in ran.stdout
    assert "PostgreSQL: connections that writes use" in ran.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("bare_per_second", "our_per_second"):
        assert figures[f"writes/loopback/16/{name}"] > 0
        assert figures[f"writes/2 ms/16/{name}"] > 0
    assert figures["writes/connections"] >= 1


@pytest.mark.thorough
def test_quick_benchmark_of_listings_compares_two_sizes_and_shows_the_plans(tmp_path: Path) -> None:
    postgres_binaries()
    command = [sys.executable, "-m", "benchmarks.listing", "--quick", "--json", str(tmp_path / "figures.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stderr
    assert "SEARCH checkpoints USING INDEX" in ran.stdout
    assert "Index Scan Backward using" in ran.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("postgresql/growing", "postgresql/steady", "sqlite/growing", "sqlite/steady"):
        assert figures[f"listing/{name}/ratio"] > 0


def test_promise_is_missed_by_a_figure_beyond_its_threshold_and_by_one_that_is_no_number() -> None:
    promise = Promise("twice as fast", "ratio", "at least", 2.0)
    assert promise.judge({"ratio": 2.0}) == "met"
    assert promise.judge({"ratio": 1.99}) == "missed"
    assert promise.judge({"ratio": float("nan")}) == "missed"
    assert promise.judge({}) == "not measured"


def test_stages_of_a_call_add_up_to_it() -> None:
    inside = {"accept": 1.0, "guard": 7.0, "backend": 5.0, "rows": 1.0, "server": 3.0, "warm": 2.0}
    parts = stages(12.0, inside)
    assert sum(parts.values()) == 12.0
    assert min(parts.values()) > 0
