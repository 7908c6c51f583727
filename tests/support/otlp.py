"""A real OTLP/HTTP endpoint, what it received as decoded messages, and applications that send to it.

Providers are global and can be set once per process, so each application is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

SPAN_NAMES = {
    *("checkpoint.put", "checkpoint.put_writes", "checkpoint.get", "checkpoint.list", "checkpoint.delete"),
    *("checkpoint.probe", "checkpoint.drain", "checkpoint.outage"),
}
METRIC_UNITS = {
    "checkpointer.operation.duration": "s",
    "checkpointer.operations": "{operation}",
    "checkpointer.retries": "{retry}",
    "checkpointer.failovers": "{operation}",
    "checkpointer.state": "",
    "checkpointer.journal.pending": "{operation}",
    "checkpointer.journal.oldest_age": "s",
    "checkpointer.journal.size": "By",
    "checkpointer.journal.writable": "",
    "checkpointer.journal.utilization": "",
    "checkpointer.journal.dead_letters": "{operation}",
    "checkpointer.journal.frozen_threads": "{thread}",
    "checkpointer.journal.damages": "{place}",
    "checkpointer.breaker.openings": "{opening}",
    "checkpointer.reconcile.operations": "{operation}",
    "checkpointer.reconcile.divergences": "{divergence}",
    "checkpointer.reconcile.dead_letters": "{operation}",
    "checkpointer.retention.threads": "{thread}",
    "checkpointer.probe.duration": "s",
    "checkpointer.standby.size": "By",
    "checkpointer.pool.min": "{connection}",
    "checkpointer.pool.max": "{connection}",
    "checkpointer.pool.size": "{connection}",
    "checkpointer.pool.available": "{connection}",
    "checkpointer.pool.waiting": "{request}",
}


class Endpoint(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.bodies: dict[str, list[bytes]] = {"/v1/traces": [], "/v1/metrics": []}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def all_spans(self) -> list[Any]:
        """Every received span, in the order in which they came."""
        found: list[Any] = []
        for body in self.bodies["/v1/traces"]:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                assert attributes(resource.resource)["service.name"] == "shop-agent"
                found += [span for scope in resource.scope_spans for span in scope.spans]
        return found

    def spans(self) -> dict[str, Any]:
        """The last received span of each name."""
        return {span.name: span for span in self.all_spans()}

    def all_metrics(self) -> list[dict[str, Any]]:
        """The metrics of this library by name, once per export, in the order in which they came."""
        exports: list[dict[str, Any]] = []
        for body in self.bodies["/v1/metrics"]:
            found: dict[str, Any] = {}
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                assert attributes(resource.resource)["service.name"] == "shop-agent"
                found |= {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
            exports.append({name: metric for name, metric in found.items() if name.startswith("checkpointer.")})
        return exports

    def metrics(self) -> dict[str, Any]:
        """The last state of every received metric by its name."""
        return {name: metric for export in self.all_metrics() for name, metric in export.items()}


class Receiver(BaseHTTPRequestHandler):
    """Takes one request."""

    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["content-type"] == "application/x-protobuf"
        self.server.bodies[self.path].append(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the default writes every request to standard error."""


@contextmanager
def serving() -> Iterator[Endpoint]:
    """An endpoint that receives for as long as the block runs."""
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.serve_forever)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()


def environment_of(**environment: str) -> dict[str, str]:
    """This process's environment with `environment` as its only telemetry settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | environment


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `program` as an application whose only telemetry settings are `environment`."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a decoded span, event, point or resource as plain values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes}


def points(metric: Any) -> list[Any]:
    """The points of a decoded metric."""
    return list(getattr(metric, metric.WhichOneof("data")).data_points)
