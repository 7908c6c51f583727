"""The example as its image starts it: its probes, its end, and what a real Prometheus says of a real outage."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.deploy.parts import DEPLOY, compose, document, grace_period
from tests.deploy.service import Prometheus, Service, running_prometheus, running_service, wait_until
from tests.support.otlp import attributes, serving

POD = document(DEPLOY / "kubernetes" / "stateful-set.yaml")["spec"]["template"]
METRICS_PATH = POD["metadata"]["annotations"]["prometheus.io/path"]


def probed() -> list[str]:
    """Every path that Kubernetes asks."""
    (container,) = POD["spec"]["containers"]
    return sorted({probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")})


@pytest.mark.alone
@pytest.mark.timeout(300)  # it waits for what the clock of a real Prometheus brings, one thing after the other
def test_alert_of_an_outage_fires_while_the_database_is_dead_and_ends_when_it_is_back(
    tmp_path: Path, private_postgres: LocalPostgres
) -> None:
    with (
        running_service(tmp_path, DATABASE_URL=private_postgres.url()) as service,
        running_prometheus(tmp_path, service.address, METRICS_PATH) as prometheus,
    ):
        assert service.say("warm") == 200
        wait_until(lambda: prometheus.value("checkpointer_state") == 0)
        wait_until(lambda: prometheus.alerts() == {})
        private_postgres.kill()
        _talk_until_fires(service, prometheus, {"CheckpointerOutage", "CheckpointerCallsFail"})
        for path in probed():
            assert service.client.get(path).status_code == 200, "an outage is no reason to restart or to take it away"
        assert service.is_healthy()
        for alert in prometheus.alerts().values():
            assert alert["labels"]["instance"] == service.address
            for text in alert["annotations"].values():
                assert "{{" not in text
                assert "<error" not in text
                assert "<no value>" not in text
        private_postgres.start()
        wait_until(lambda: prometheus.value("checkpointer_state") == 0)
        wait_until(lambda: "CheckpointerOutage" not in prometheus.alerts())
        drained = prometheus.value("sum(checkpointer_reconcile_operations_total)")
        assert drained == prometheus.value("sum(checkpointer_failovers_total)")
        assert service.stop() < grace_period({})
        wait_until(lambda: "CheckpointerMetricsMissing" in prometheus.alerts())


def _talk_until_fires(service: Service, prometheus: Prometheus, alerts: set[str]) -> None:
    """Talk in a thread that is warm, which works, and in one that is not, which cannot, until the alerts fire."""

    def fire() -> bool:
        assert service.say("warm") == 200, service.log()
        assert service.say("cold") == 503, service.log()
        return alerts <= prometheus.alerts().keys()

    wait_until(fire, lambda: f"{prometheus.alerts().keys()}\n{service.log()}")


def test_service_stops_in_time_while_its_database_is_dead_and_the_next_one_brings_home_what_it_left(
    tmp_path: Path, private_postgres: LocalPostgres
) -> None:
    settings = {"CHECKPOINT_SHUTDOWN_GRACE": "1"}
    with running_service(tmp_path, DATABASE_URL=private_postgres.url(), **settings) as service:
        assert service.say("one") == 200
        private_postgres.kill()
        assert service.say("one") == 200
        assert service.stop() < grace_period(settings)
    private_postgres.start()
    with running_service(tmp_path, DATABASE_URL=private_postgres.url()) as service:
        wait_until(lambda: service.client.get("/checkpointing/health").json()["journal"]["pending"] == 0)
        answer = service.client.post("/threads/one/messages", json={"text": "again"})
        assert answer.json()["reply"].startswith("You said 3 things")


def test_service_sends_to_the_collector_what_compose_tells_it_to_and_as_whom(tmp_path: Path) -> None:
    told = {name: value for name, value in compose()["services"]["app"]["environment"].items() if "OTEL" in name}
    with serving() as collector:
        told["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        with running_service(tmp_path, CHECKPOINT_ENVIRONMENT="testing", **told) as service:
            assert service.say("one") == 200
            service.stop()
        spans = ExportTraceServiceRequest.FromString(collector.bodies["/v1/traces"][-1]).resource_spans
        metrics = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"][-1]).resource_metrics
    for sent in (*spans, *metrics):
        resource = attributes(sent.resource)
        assert resource["service.name"] == told["OTEL_SERVICE_NAME"]
        assert f"service.instance.id={resource['service.instance.id']}" == told["OTEL_RESOURCE_ATTRIBUTES"]
    assert "checkpoint.put" in {span.name for sent in spans for scope in sent.scope_spans for span in scope.spans}
    names = {metric.name for sent in metrics for scope in sent.scope_metrics for metric in scope.metrics}
    assert "checkpointer.operations" in names
