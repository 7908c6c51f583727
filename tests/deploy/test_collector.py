"""The Collector's configuration: Debian has no Collector to ask, so its structure is held against what it must be."""

from __future__ import annotations

from typing import Any

from tests.deploy.parts import DEPLOY, compose, document

CONFIGURATION = document(DEPLOY / "otel-collector.yaml")
PIPELINES: dict[str, dict[str, list[str]]] = CONFIGURATION["service"]["pipelines"]
KINDS = ("receivers", "processors", "exporters")


def test_every_component_of_a_pipeline_is_configured_and_every_configured_one_is_in_a_pipeline() -> None:
    for kind in KINDS:
        used = {name for pipeline in PIPELINES.values() for name in pipeline[kind]}
        assert used == CONFIGURATION[kind].keys(), kind
    assert CONFIGURATION.keys() == {*KINDS, "service"}
    assert CONFIGURATION["service"].keys() == {"pipelines"}


def test_spans_go_to_jaeger_and_metrics_to_where_prometheus_fetches_them() -> None:
    assert PIPELINES.keys() == {"traces", "metrics"}
    assert PIPELINES["traces"]["exporters"] == ["otlp_grpc/jaeger"]
    assert PIPELINES["metrics"]["exporters"] == ["prometheus"]


def test_memory_is_limited_first_and_batches_are_made_last() -> None:
    for pipeline in PIPELINES.values():
        assert pipeline["processors"] == ["memory_limiter", "batch"]


def test_names_of_metrics_keep_their_units_as_the_alerts_have_them() -> None:
    exporter: dict[str, Any] = CONFIGURATION["exporters"]["prometheus"]
    assert exporter.keys() == {"endpoint", "metric_expiration"}, "a namespace or other suffixes would rename everything"


def test_labels_of_the_process_are_those_that_it_was_given() -> None:
    (scraped,) = document(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scraped["honor_labels"] is True, "else every process is called by the Collector's address"
    environment = compose()["services"]["app"]["environment"]
    assert environment["OTEL_SERVICE_NAME"]
    assert environment["OTEL_RESOURCE_ATTRIBUTES"].startswith("service.instance.id=")


def test_the_application_speaks_the_protocol_that_is_received() -> None:
    assert CONFIGURATION["receivers"]["otlp"]["protocols"].keys() == {"http"}


def test_compose_starts_the_collector_with_this_file() -> None:
    service = compose()["services"]["otel-collector"]
    (source, target, _) = service["volumes"][0].split(":")
    assert (DEPLOY / source).samefile(DEPLOY / "otel-collector.yaml")
    assert service["command"] == [f"--config={target}"]
