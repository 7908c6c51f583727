"""Makes dashboards/checkpointing.json of dashboard_panels.py: `python deploy/grafana/make_dashboard.py [FILE]`.

A dashboard as JSON is two thousand lines that nobody reads, and that nobody notices a mistake in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dashboard_panels import GREEN, ROWS, Panel

DASHBOARD = Path(__file__).parent / "dashboards" / "checkpointing.json"
COLUMNS = 24
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana reads it."""
    return {
        "uid": "checkpointing",
        "title": "Checkpointing",
        "description": "What enhanced_checkpointing says of itself: is anything at risk, and what do callers see?",
        "tags": ["checkpointing"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                _variable("job", "label_values(checkpointer_state, job)"),
                _variable("instance", 'label_values(checkpointer_state{job=~"$job"}, instance)'),
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": list(_placed()),
    }


def _placed() -> Iterator[dict[str, Any]]:
    """Every panel at its place: from left to right, and below where the width is used up."""
    number, top = 0, 0
    for row in ROWS:
        number += 1
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        left, top, tallest = 0, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top, tallest = 0, top + tallest, 0
            number += 1
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left, tallest = left + panel.width, max(tallest, panel.height)
        top += tallest


def _panel(panel: Panel) -> dict[str, Any]:
    steps = [{"color": GREEN, "value": None}, *({"color": color, "value": value} for value, color in panel.steps)]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "noValue": "no data",
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [
            {"type": "value", "options": {value: {"text": text, "color": color, "index": index}}}
            for index, (value, (text, color)) in enumerate(panel.names.items())
        ],
    }
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 80 if panel.bars else 10, "showPoints": "never"}
        if panel.bars:
            defaults["custom"] |= {"drawStyle": "bars", "stacking": {"mode": "normal", "group": "A"}}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif panel.kind == "stat":
        options = {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    elif panel.kind == "state-timeline":
        defaults["custom"] = {"fillOpacity": 80, "lineWidth": 0}
        options = {"mergeValues": True, "showValue": "never", "rowHeight": 0.8}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": PROMETHEUS,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": PROMETHEUS,
                "expr": query,
                "legendFormat": legend or "__auto",
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DASHBOARD
    target.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
