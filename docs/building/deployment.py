"""Draws docs/images/deployment.svg, what runs where: `python -m docs.building.deployment --write`."""

from __future__ import annotations

from docs.building.drawing import INK, QUIET, Box, arrow, box, picture, text
from docs.building.writing import DOCS, write_or_print

PICTURE = DOCS / "images" / "deployment.svg"
WIDTH, HEIGHT = 1130, 300
WRITE, TOLD = "#1f6feb", "#b7791f"


def drawing() -> str:
    """The whole picture."""
    caller = Box(30, 60, 90, 50, "Caller", fill="#fff8e6", edge="#b7791f")
    app = Box(200, 50, 130, 70, "Application", ["the agents"])
    journal = Box(200, 200, 130, 60, "Journal", ["on a volume"], fill="#e6f0fd")
    postgres = Box(480, 200, 150, 60, "PostgreSQL", ["the truth"], fill="#dde7f2", edge="#243b53")
    collector = Box(480, 50, 150, 70, "OpenTelemetry", ["Collector"])
    jaeger = Box(740, 30, 140, 44, "Jaeger", ["traces"])
    prometheus = Box(740, 116, 140, 60, "Prometheus", ["and the alert rules"])
    grafana = Box(970, 116, 130, 60, "Grafana", ["the dashboard"])
    parts = [
        arrow(caller.at("right"), app.at("left"), colour=INK),
        arrow(app.at("right", 0.85), (405, 109.5), (405, 216), postgres.at("left", 0.27), colour=WRITE),
        arrow(app.at("bottom"), journal.at("top"), colour=WRITE, dashed=True),
        arrow(journal.at("right", 0.75), postgres.at("left", 0.75), colour=WRITE, dashed=True),
        arrow(app.at("right", 0.35), collector.at("left", 0.35), colour=TOLD, thin=True),
        arrow(collector.at("right", 0.25), jaeger.at("left", 0.85), colour=TOLD, thin=True),
        arrow(collector.at("right", 0.8), prometheus.at("left", 0.4), colour=TOLD, thin=True),
        arrow(prometheus.at("right"), grafana.at("left"), colour=TOLD, thin=True),
        *(box(each) for each in (caller, app, journal, postgres, collector, jaeger, prometheus, grafana)),
        text(412, 170, "checkpoints", ink=WRITE),
        text(256, 165, "in an outage", ink=WRITE, anchor="end"),
        text(405, 262, "when it is back", ink=WRITE, anchor="middle"),
        text(405, 66, "spans, metrics", ink=TOLD, anchor="middle"),
        text(655, 58, "spans", ink=TOLD),
        text(650, 142, "metrics", ink=TOLD, anchor="start"),
        text(1100, 280, "Blue: where checkpoints go. Dashed: in an outage, and after it.", ink=QUIET, anchor="end"),
    ]
    title = (
        "A caller talks to the application. It keeps its checkpoints in PostgreSQL; in an outage in the journal on a "
        "volume, and from there in PostgreSQL when that is back. Spans and metrics go to the OpenTelemetry Collector, "
        "from there to Jaeger and to Prometheus with its alert rules, which Grafana shows."
    )
    return picture(WIDTH, HEIGHT, parts, title=title, colours=[INK, WRITE, TOLD])


if __name__ == "__main__":
    write_or_print(PICTURE, drawing())
