"""The example service as its image starts it, and a Prometheus that watches it with the rules of deploy/."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from enhanced_checkpointing.cli.demo.postgres_server import free_port
from tests.deploy import dockerfile
from tests.deploy.parts import ALERTS, ROOT, document, tool

WITHIN = 40.0
"""Seconds that anything may take here; a machine with other work is slow."""


class Service:
    """One process of it, on a port of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / "service.log"
        settings = {"CHECKPOINT_ENVIRONMENT": "production", "CHECKPOINT_JOURNAL_DIR": str(folder / "journal")}
        known = {name: value for name, value in os.environ.items() if not name.startswith(("CHECKPOINT_", "OTEL_"))}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._here(dockerfile.command()),
                env={**known, "PYTHONPATH": path, **settings, **environment},
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(base_url=f"http://{self.address}", timeout=10.0)

    def say(self, thread: str) -> int:
        """Send a message to a thread, and return the status of the answer."""
        return self.client.post(f"/threads/{thread}/messages", json={"text": "hello"}).status_code

    def is_healthy(self) -> bool:
        """What the image's health check says of this process."""
        asked = subprocess.run(self._here(dockerfile.health_command()), capture_output=True, check=False)
        return asked.returncode == 0

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> float:
        """Stop as a container is stopped, and return the seconds that it took to end in order."""
        started_at = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WITHIN)
        assert "Application shutdown complete" in self.log(), self.log()
        return time.monotonic() - started_at

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    def _here(self, command: list[str]) -> list[str]:
        """A command of the image, with this Python and this process's address."""
        host, port = self.address.split(":")
        changed = {"0.0.0.0": host, dockerfile.last("EXPOSE"): port}
        program = [sys.executable] if command[0] == "python" else [sys.executable, "-m", command[0]]
        rest = [changed.get(word, word) for word in command[1:]]
        return [*program, *(word.replace(f"127.0.0.1:{dockerfile.last('EXPOSE')}", self.address) for word in rest)]


class Prometheus:
    """A real one, which looks every second."""

    def __init__(self, folder: Path, target: str, metrics_path: str) -> None:
        address = f"127.0.0.1:{free_port()}"
        watched = {
            "job_name": "chat",
            "metrics_path": metrics_path,
            "static_configs": [{"targets": [target]}],
        }
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(self._quick_rules(folder))],
            "scrape_configs": [watched],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        arguments = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "prometheus",
            "web.listen-address": address,
        }
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(
                [tool("prometheus"), *(f"--{name}={value}" for name, value in arguments.items())],
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(base_url=f"http://{address}/api/v1/", timeout=10.0)

    def alerts(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire now, by their names."""
        found = self.client.get("alerts").raise_for_status().json()["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found if alert["state"] == "firing"}

    def value(self, query: str) -> float | None:
        """The one value that a query has now; None: it has none."""
        results = self.client.get("query", params={"query": query}).raise_for_status().json()["data"]["result"]
        return float(results[0]["value"][1]) if results else None

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()

    @staticmethod
    def _quick_rules(folder: Path) -> Path:
        """The rules, each of which needs its trouble to last for a second only."""
        rules = document(ALERTS)
        for rule in rules["groups"][0]["rules"]:
            rule["for"] = "1s"
        quick = folder / "alerts.yml"
        quick.write_text(yaml.safe_dump(rules))
        return quick


@contextmanager
def running_service(folder: Path, **environment: str) -> Iterator[Service]:
    """The service once it answers; it is killed at the end if it still runs."""
    service = Service(folder, **environment)
    try:
        wait_until(service.is_healthy, service.log)
        yield service
    finally:
        service.close()


@contextmanager
def running_prometheus(folder: Path, target: str, metrics_path: str) -> Iterator[Prometheus]:
    """A Prometheus once it has seen its target."""
    prometheus = Prometheus(folder, target, metrics_path)
    try:
        wait_until(lambda: _answers(prometheus) and prometheus.value("up") == 1)
        yield prometheus
    finally:
        prometheus.close()


def wait_until(condition: Callable[[], bool], explanation: Callable[[], object] = str) -> None:
    """Wait until a condition holds; fail, with an explanation, when it takes too long."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, explanation()
        time.sleep(0.2)


def _answers(prometheus: Prometheus) -> bool:
    try:
        return prometheus.client.get("status/runtimeinfo").status_code == 200
    except httpx.TransportError:
        return False
