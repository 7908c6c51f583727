"""docker-compose.yml: as compose reads it, and whether its services find each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.deploy.parts import (
    DEPLOY,
    ROOT,
    assert_passes,
    compose,
    default_settings,
    document,
    grace_period,
)

FILE = DEPLOY / "docker-compose.yml"
COLLECTOR = document(DEPLOY / "otel-collector.yaml")
LISTENS: dict[str | None, set[int | None]] = {
    "app": {8000},
    "postgres": {5432},
    "jaeger": {4317, 16686},
    "prometheus": {9090},
    "grafana": {3000},
    "otel-collector": {
        urlsplit(f"//{COLLECTOR['receivers']['otlp']['protocols']['http']['endpoint']}").port,
        urlsplit(f"//{COLLECTOR['exporters']['prometheus']['endpoint']}").port,
    },
}
"""The ports on which each service answers the others: the Collector's as configured, the others' are their own."""


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def assert_reaches(address: str) -> None:
    """Assert that an address is a service, and a port on which it listens."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    assert parts.hostname in services(), address
    assert parts.port in LISTENS[parts.hostname], address


def test_file_is_what_compose_accepts() -> None:
    assert_passes("check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE)


def test_it_has_the_parts_that_the_readme_shows() -> None:
    assert services().keys() == LISTENS.keys()
    for name, service in services().items():
        image = service["image"]
        assert re.fullmatch(r"[a-z0-9/-]+:v?[0-9.]+", image), f"{name}: {image} is not one that stays the same"


def test_every_address_names_a_service_that_listens_there() -> None:
    environment = services()["app"]["environment"]
    assert_reaches(environment["DATABASE_URL"])
    assert_reaches(environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
    assert_reaches(COLLECTOR["exporters"]["otlp_grpc/jaeger"]["endpoint"])
    (scraped,) = document(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    for target in scraped["static_configs"][0]["targets"]:
        assert_reaches(target)
    sources = document(DEPLOY / "grafana/provisioning/datasources/datasources.yaml")["datasources"]
    assert {source["uid"] for source in sources} == {"prometheus", "jaeger"}
    for source in sources:
        assert_reaches(source["url"])


def test_every_port_is_published_on_this_machine_only_and_belongs_to_its_service() -> None:
    for name, service in services().items():
        for port in service.get("ports", []):
            host, outside, inside = port.split(":")
            assert host == "127.0.0.1", f"{name}: {port}"
            assert outside == inside
            assert int(inside) in LISTENS[name], f"{name}: {port}"


def test_every_mounted_file_is_there_and_is_read_only() -> None:
    for name, service in services().items():
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
                assert mode == ["ro"], f"{name}: {volume}"
            else:
                assert source in compose()["volumes"], f"{name}: {source}"
            assert target.startswith("/")


def test_journal_is_on_a_volume_that_outlives_the_container() -> None:
    app = services()["app"]
    directory = Path(app["environment"]["CHECKPOINT_JOURNAL_DIR"])
    (volume,) = app["volumes"]
    source, target = volume.split(":")
    assert source in compose()["volumes"]
    assert Path(target) in directory.parents, "a directory below the mount point: a disk has things of its own there"


def test_settings_are_the_defaults_but_for_what_containers_need() -> None:
    changed = {name for name in services()["app"]["environment"] if name.startswith("CHECKPOINT_")}
    assert changed == {"CHECKPOINT_ENVIRONMENT", "CHECKPOINT_JOURNAL_DIR"}
    assert changed <= default_settings().keys()
    assert services()["app"]["env_file"] == ".env"
    for name, default in re.findall(r"^#(CHECKPOINT_\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), re.MULTILINE):
        assert default_settings()[name] == default


def test_a_stop_gets_the_time_that_a_drain_may_take() -> None:
    assert services()["app"]["stop_grace_period"] == f"${{STOP_GRACE_PERIOD:-{grace_period({}):g}s}}"
    assert f"#STOP_GRACE_PERIOD={grace_period({}):g}s" in (DEPLOY / ".env.example").read_text()


def test_there_is_no_password_in_any_file_and_starting_without_one_says_so() -> None:
    assert "\nPOSTGRES_PASSWORD=\n" in (DEPLOY / ".env.example").read_text(), "an example has none to be forgotten"
    passwords = {
        name: value
        for service in services().values()
        for name, value in service.get("environment", {}).items()
        if "PASSWORD" in name or "SECRET" in name or "TOKEN" in name
    }
    assert passwords.keys() == {"POSTGRES_PASSWORD", "PGPASSWORD"}
    for value in passwords.values():
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?.*\.env.*\}", value)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines(), "a .env with a password must not be committed"
