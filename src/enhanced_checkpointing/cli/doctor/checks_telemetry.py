"""Where spans and metrics go, and whether anybody is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from enhanced_checkpointing.cli.findings import Finding, failed, fine, warning

__all__ = ["check_telemetry", "endpoint_of"]

NAME = "telemetry"
DEFAULT_PORTS = {"http": 80, "https": 443}
NO_TRACE = "Spans and metrics are not sent. Checkpoints are not affected."


def endpoint_of(environment: Mapping[str, str]) -> str:
    """The collector that the variables name; empty if none does."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    return next((environment[name] for name in names if environment.get(name)), "")


def check_telemetry(environment: Mapping[str, str], reached: Callable[[str, int], str]) -> Finding:
    """Whether the collector can be reached; `reached(host, port)` says why it cannot, or nothing."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return fine(NAME, "Telemetry is off (OTEL_SDK_DISABLED=true).")
    endpoint = endpoint_of(environment)
    if not endpoint:
        return fine(
            NAME, "No collector is named (OTEL_EXPORTER_OTLP_ENDPOINT): nothing is sent by configure_telemetry()."
        )
    if (found := _unusable(environment)) is not None:
        return found
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:  # its words may quote what was meant as a password
        parts, host, port = urlsplit(""), "", 0
    if not host or not port:
        fix = "Give http://host:4318 or https://host."
        return failed(NAME, "The collector's endpoint is no URL (OTEL_EXPORTER_OTLP_ENDPOINT).", NO_TRACE, fix)
    if error := reached(host, port):
        return warning(
            NAME,
            f"The collector at {host}:{port} cannot be reached: {error}.",
            NO_TRACE,
            "Start it, or correct OTEL_EXPORTER_OTLP_ENDPOINT; over HTTP its port is 4318.",
        )
    return fine(NAME, f"The collector at {host}:{port} listens.", endpoint=f"{parts.scheme}://{host}:{port}")


def _unusable(environment: Mapping[str, str]) -> Finding | None:
    """What `configure_telemetry()` would refuse."""
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol.strip().lower() != "http/protobuf":
        return failed(
            NAME,
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not spoken here.",
            "configure_telemetry() raises an error.",
            "Set it to http/protobuf, and let the endpoint name the collector's HTTP port (4318).",
        )
    if importlib.util.find_spec("opentelemetry.exporter.otlp") is None:
        return failed(
            NAME,
            "A collector is named, and the exporter is not installed.",
            "configure_telemetry() raises an error.",
            'pip install "enhanced-checkpointing[otlp]"',
        )
    return None
