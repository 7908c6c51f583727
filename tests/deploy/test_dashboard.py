"""The dashboard: made by its script, whole, and asking only what Prometheus understands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.deploy.parts import DASHBOARD, DEPLOY, assert_passes, compose, dashboard, document, panel_queries

GRAFANA = DEPLOY / "grafana"


def pictures() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def test_file_is_what_its_script_makes(tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    subprocess.run([sys.executable, GRAFANA / "make_dashboard.py", made], check=True, timeout=30)
    assert json.loads(made.read_text()) == dashboard(), "run: python deploy/grafana/make_dashboard.py"


def test_grafana_knows_every_field() -> None:
    register_default_plugins()
    understood = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard())))
    assert set(_leaves(dashboard())) - set(_leaves(understood)) == set()


def _leaves(value: Any, place: str = "") -> Iterator[str]:
    """Every value in a nested one, with its place."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{place}/{name}")
    else:
        yield f"{place}: {value!r}"


def test_every_query_is_understood_by_prometheus(tmp_path: Path) -> None:
    asked = panel_queries()
    assert len(asked) >= len(pictures())
    recorded = [{"record": f"panel:{number}", "expr": query} for number, (_, query) in enumerate(asked)]
    rules = tmp_path / "panels.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    assert_passes("promtool", "check", "rules", "--lint=none", rules)


def test_every_panel_says_what_it_shows_and_asks_the_provisioned_prometheus() -> None:
    sources = document(GRAFANA / "provisioning/datasources/datasources.yaml")["datasources"]
    known = {(source["type"], source["uid"]) for source in sources}
    for panel in pictures():
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        for asking in (panel, *panel["targets"]):
            assert (asking["datasource"]["type"], asking["datasource"]["uid"]) in known


def test_no_panel_covers_another_and_none_stands_beside_the_page() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in ((place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])):
            assert cell not in taken, f"{panel['title']} covers {taken.get(cell)}"
            taken[cell] = panel["title"]
    numbers = [panel["id"] for panel in dashboard()["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_grafana_finds_the_dashboard_where_compose_mounts_it() -> None:
    service = compose()["services"]["grafana"]
    mounts = {target: DEPLOY / source for source, target, _ in (volume.split(":") for volume in service["volumes"])}
    (provider,) = document(GRAFANA / "provisioning/dashboards/dashboards.yaml")["providers"]
    assert mounts[provider["options"]["path"]].samefile(DASHBOARD.parent)
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounts[str(home.parent)] / home.name).samefile(DASHBOARD)
    assert mounts["/etc/grafana/provisioning"].samefile(GRAFANA / "provisioning")
