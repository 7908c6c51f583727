"""Sets up the OpenTelemetry SDK with OTLP over HTTP, for applications that have not done so themselves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.observability.log import LOGGER_NAME
from enhanced_checkpointing.observability.otel import global_providers

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

_logger = logging.getLogger(LOGGER_NAME)


def configure_telemetry(service_name: str | None = None) -> Callable[[], None]:
    """Send spans and metrics to an OTLP/HTTP collector; call the returned function at exit to flush and stop.

    Flushing waits at most `OTEL_EXPORTER_OTLP_TIMEOUT` (10 s) per signal for a collector that does not answer.
    Everything comes from the standard `OTEL_…` variables (endpoint, headers, sampler, intervals); `service_name` wins
    over `OTEL_SERVICE_NAME`. A provider that the application has set is left alone, `OTEL_SDK_DISABLED=true` and
    `OTEL_TRACES_EXPORTER=none` / `OTEL_METRICS_EXPORTER=none` are honoured. Raises `CheckpointerConfigurationError`
    when the exporter is not installed or the variables ask for another one than OTLP over HTTP with protobuf.
    """
    shutdown = ExitStack()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        _logger.info("telemetry is off: OTEL_SDK_DISABLED is true")
        return shutdown.close
    tracer_provider, meter_provider = global_providers()
    wants_traces = _is_wanted("traces", tracer_provider)
    wants_metrics = _is_wanted("metrics", meter_provider)
    if not (wants_traces or wants_metrics):
        return shutdown.close
    span_exporter, metric_exporter = _exporters()
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else {})
    if wants_metrics:
        meters = MeterProvider([PeriodicExportingMetricReader(metric_exporter())], resource=resource)
        metrics.set_meter_provider(meters)
        shutdown.callback(meters.shutdown)
    if wants_traces:
        tracers = TracerProvider(resource=resource)
        tracers.add_span_processor(BatchSpanProcessor(span_exporter()))
        trace.set_tracer_provider(tracers)
        shutdown.callback(tracers.shutdown)
    return shutdown.close


def _is_wanted(signal: str, provider: object | None) -> bool:
    """Return whether this library should set up `signal`; raises when the variables ask for what it cannot do."""
    if provider is not None:
        _logger.info("the application has set up %s itself, its provider is used as it is", signal)
        return False
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    exporter = os.environ.get(variable, "").strip().lower() or "otlp"
    if exporter == "none":
        _logger.info("no %s are sent: %s is none", signal, variable)
        return False
    if exporter not in ("otlp", "otlp_proto_http"):
        raise CheckpointerConfigurationError(
            f"{variable}={exporter} is not known here: unset it to send OTLP over HTTP, or set up the OpenTelemetry "
            "SDK in the application instead of calling configure_telemetry()"
        )
    variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    protocol = os.environ.get(variable) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol.strip().lower() != "http/protobuf":
        raise CheckpointerConfigurationError(
            f"the OTLP protocol {protocol} is not spoken here: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf and let "
            "the endpoint name the collector's HTTP port (4318 by default)"
        )
    return True


def _exporters() -> tuple[type[OTLPSpanExporter], type[OTLPMetricExporter]]:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise CheckpointerConfigurationError(
            "the OTLP exporter is not installed: pip install enhanced-checkpointing[otlp]"
        ) from missing
    return OTLPSpanExporter, OTLPMetricExporter
