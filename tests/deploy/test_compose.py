"""docker-compose.yml: as compose reads it, and whether its services find, trust and allow each other."""

from __future__ import annotations

import re
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

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
ONCE = ("certificates", "setup", "grants")
"""Services that do something and end."""
LISTENS: dict[str | None, set[int | None]] = {
    "app": {8000},
    "postgres": {5432},
    **{once: set() for once in ONCE},
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
            assert mode == ["ro"] or name not in ("app", "setup", "grants") or source == "journal", volume
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
                assert mode == ["ro"], f"{name}: {volume}"
            else:
                assert source in compose()["volumes"], f"{name}: {source}"
            assert target.startswith("/")


def test_journal_is_on_a_volume_that_outlives_the_container() -> None:
    app = services()["app"]
    directory = Path(app["environment"]["CHECKPOINT_JOURNAL_DIR"])
    volume, _ = app["volumes"]
    source, target = volume.split(":")
    assert source in compose()["volumes"]
    assert Path(target) in directory.parents, "a directory below the mount point: a disk has things of its own there"


def test_settings_are_the_defaults_but_for_what_containers_need() -> None:
    changed = {name for name in services()["app"]["environment"] if name.startswith("CHECKPOINT_")}
    assert changed == {"CHECKPOINT_ENVIRONMENT", "CHECKPOINT_JOURNAL_DIR", "CHECKPOINT_AUTO_SETUP"}
    assert changed <= default_settings().keys()
    assert services()["app"]["env_file"] == [{"path": "settings.env", "required": False}], "not .env with all passwords"


def test_a_stop_gets_the_time_that_a_drain_may_take() -> None:
    assert services()["app"]["stop_grace_period"] == f"${{STOP_GRACE_PERIOD:-{grace_period({}):g}s}}"
    assert f"#STOP_GRACE_PERIOD={grace_period({}):g}s" in (DEPLOY / ".env.example").read_text()


ROLES = {"PGPASSWORD of app": "RUN", "PGPASSWORD of setup": "SETUP", "PGPASSWORD of grants": "SETUP"}
OF_SERVER = {f"{role}_PASSWORD of postgres": role for role in ("POSTGRES", "SETUP", "RUN")}


def test_there_is_no_password_in_any_file_and_each_service_gets_its_own_role_s_only() -> None:
    for role in OF_SERVER.values():
        assert f"\n{role}_PASSWORD=\n" in (DEPLOY / ".env.example").read_text(), "an example has none to be forgotten"
    passwords = {
        f"{variable} of {name}": value
        for name, service in services().items()
        for variable, value in service.get("environment", {}).items()
        if "PASSWORD" in variable or "SECRET" in variable or "TOKEN" in variable
    }
    assert passwords.keys() == ROLES.keys() | OF_SERVER.keys()
    for name, role in (ROLES | OF_SERVER).items():
        assert re.fullmatch(rf"\$\{{{role}_PASSWORD:\?.*\.env.*\}}", passwords[name]), name
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines(), "a .env with a password must not be committed"


def test_tables_are_made_and_granted_before_the_service_runs_as_a_role_that_can_do_neither() -> None:
    def follows(name: str) -> list[str]:
        after = [*services()[name].get("depends_on", ())]
        for one in after:
            wanted = "service_completed_successfully" if one in ONCE else "service_healthy"
            assert services()[name]["depends_on"][one] == {"condition": wanted}
        return [*after, *(further for one in after for further in follows(one))]

    assert follows("app") == ["grants", "setup", "postgres", "certificates"]
    app, setup, grants = (services()[name] for name in ("app", "setup", "grants"))
    assert (app["environment"]["CHECKPOINT_AUTO_SETUP"], setup["command"]) == ("false", ["checkpointing", "setup"])
    assert (setup["image"], setup["build"]) == (app["image"], app["build"])
    urls = {"checkpoint_run": app["environment"]["DATABASE_URL"], "checkpoint_setup": grants["entrypoint"][-1]}
    assert setup["environment"]["DATABASE_URL"] == urls["checkpoint_setup"]
    for role, url in urls.items():
        assert_reaches(url)
        assert urlsplit(url).username == role
        assert parse_qs(urlsplit(url).query) == {"sslmode": ["verify-full"], "sslrootcert": ["/authority/ca.pem"]}
    for service in (app, setup, grants):
        assert "authority:/authority:ro" in service["volumes"]


def test_grants_are_those_of_the_documents() -> None:
    recipe = (
        (ROOT / "docs" / "operations.md").read_text().partition('title="the role that runs"')[2].partition("```")[0]
    )
    told = [line for line in recipe.splitlines() if line.startswith("GRANT")]
    done = (DEPLOY / "postgres" / "grants.sql").read_text().splitlines()
    assert [line for line in done if line.startswith("GRANT")] == told != []
    assert "CREATE ROLE checkpoint_run LOGIN" in recipe
    assert "CREATE ROLE checkpoint_run LOGIN" in (DEPLOY / "postgres" / "roles.sql").read_text()


def test_certificates_are_made_once_and_prove_the_server_and_no_other(tmp_path: Path) -> None:
    server, authority, work = (tmp_path / name for name in ("server", "authority", "work"))
    for folder in (server, authority, work):
        folder.mkdir()
    script = DEPLOY / "postgres" / "certificates.sh"
    command = ["sh", str(script), str(server), str(authority), str(tmp_path.owner())]

    def make() -> dict[str, bytes]:
        subprocess.run(command, check=True, capture_output=True, env={"TMPDIR": str(work), "PATH": "/usr/bin:/bin"})
        return {path.name: path.read_bytes() for path in (*server.iterdir(), *authority.iterdir())}

    made = make()
    assert made.keys() == {"server.key", "server.pem", "ca.pem"}, "the key of the authority is nowhere"
    assert make() == made
    assert [*work.iterdir()] == []
    assert (server / "server.key").stat().st_mode & 0o777 == 0o600
    assert (authority / "ca.pem").stat().st_mode & 0o777 == 0o644

    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server / "server.pem", server / "server.key")
    trust = ssl.create_default_context(cafile=authority / "ca.pem")
    _shake_hands(ours, trust, "postgres")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _shake_hands(ours, trust, "elsewhere")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """TLS in memory. Raises as the client does."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    told = client.wrap_bio(to_client, to_server, server_hostname=name)
    tells = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        with suppress(ssl.SSLWantReadError):
            told.do_handshake()
        with suppress(ssl.SSLWantReadError):
            tells.do_handshake()
    assert told.version() is not None
