"""The Kubernetes manifests: against the published schemas, and whether they fit each other and the library."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.deploy.parts import DEPLOY, compose, document, documents, grace_period

FOLDER = DEPLOY / "kubernetes"
MANIFESTS = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def objects(kind: str) -> dict[str, dict[str, Any]]:
    """Every object of a kind by its name."""
    found = [item for path in MANIFESTS for item in documents(path) if item["kind"] == kind]
    return {item["metadata"]["name"]: item for item in found}


SET = objects("StatefulSet")["chat"]["spec"]
POD = SET["template"]["spec"]
(SERVICE,) = POD["containers"]
SETTINGS: dict[str, str] = objects("ConfigMap")["chat-settings"]["data"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifest_is_what_the_version_accepts(path: Any, version: str) -> None:
    for item in documents(path):
        kubernetes_validate.validate(item, version, strict=True)


AUTHORITY = {"name": "authority", "mountPath": "/authority", "readOnly": True}


def test_everything_is_applied_but_the_example_of_a_secret() -> None:
    applied = document(FOLDER / "kustomization.yaml")["resources"]
    assert {*applied, "secret.example.yaml"} == {path.name for path in MANIFESTS}
    assert "secret.example.yaml" not in applied, "placeholders would overwrite what is in use"


def test_example_of_a_secret_holds_none() -> None:
    for name, role in {"chat-database": "checkpoint_run", "chat-database-setup": "checkpoint_setup"}.items():
        assert objects("Secret")[name]["stringData"] == {
            "DATABASE_URL": f"postgresql://{role}:PASSWORD@HOST:5432/DATABASE"
            f"?sslmode=verify-full&sslrootcert={AUTHORITY['mountPath']}/ca.pem"
        }
    assert objects("ConfigMap")["chat-database-authority"]["data"] == {"ca.pem": "CERTIFICATE"}
    assert len(objects("Secret")) == 2


def test_service_and_job_trust_one_authority_and_have_a_role_each() -> None:
    job = objects("Job")["chat-setup"]["spec"]["template"]["spec"]
    for pod, secret in ((POD, "chat-database"), (job, "chat-database-setup")):
        (container,) = pod["containers"]
        assert container["envFrom"][1:] == [{"secretRef": {"name": secret}}]
        assert AUTHORITY in container["volumeMounts"]
        assert {"name": AUTHORITY["name"], "configMap": {"name": "chat-database-authority"}} in pod["volumes"]


def test_every_label_that_selects_is_on_the_pods_that_are_meant_and_not_on_those_of_the_setup() -> None:
    labels = SET["template"]["metadata"]["labels"].items()
    selectors = [service["spec"]["selector"] for service in objects("Service").values()]
    selectors += [SET["selector"]["matchLabels"]]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in objects("PodDisruptionBudget").values()]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]]
    assert len(selectors) == 5
    for selector in selectors:
        assert selector.items() <= labels
        assert not selector.items() <= objects("Job")["chat-setup"]["spec"]["template"]["metadata"]["labels"].items()


def test_every_name_that_is_referred_to_is_there() -> None:
    assert SET["serviceName"] in objects("Service")
    for container in (SERVICE, *objects("Job")["chat-setup"]["spec"]["template"]["spec"]["containers"]):
        for source in container["envFrom"]:
            ((kind, reference),) = source.items()
            assert reference["name"] in objects({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind])
    ports = {port["name"] for port in SERVICE["ports"]}
    for service in objects("Service").values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    volumes = {volume["name"] for volume in POD["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in SET["volumeClaimTemplates"]}
    assert {mount["name"] for mount in SERVICE["volumeMounts"]} == volumes


def test_journal_is_on_the_claim_of_each_pod_which_stays_when_the_pod_goes() -> None:
    (claim,) = SET["volumeClaimTemplates"]
    (mounted,) = [mount for mount in SERVICE["volumeMounts"] if mount["name"] == claim["metadata"]["name"]]
    assert SETTINGS["CHECKPOINT_JOURNAL_DIR"].startswith(mounted["mountPath"] + "/")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert SET["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"], "else it cannot write there"


def test_a_stop_gets_the_time_that_a_drain_may_take() -> None:
    assert POD["terminationGracePeriodSeconds"] == grace_period(SETTINGS)


def test_probes_ask_for_life_and_readiness_and_never_restart_for_want_of_readiness() -> None:
    paths = {name: probe["httpGet"]["path"] for name, probe in SERVICE.items() if name.endswith("Probe")}
    assert paths.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    assert paths["readinessProbe"].endswith("/readyz")
    assert paths["livenessProbe"] == paths["startupProbe"] == paths["readinessProbe"].replace("readyz", "livez")


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    job = objects("Job")["chat-setup"]["spec"]["template"]["spec"]
    for pod in (POD, job):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_tables_are_made_by_the_job_and_not_by_the_pods() -> None:
    (setup,) = objects("Job")["chat-setup"]["spec"]["template"]["spec"]["containers"]
    assert setup["command"] == ["checkpointing", "setup"]
    (image,) = document(FOLDER / "kustomization.yaml")["images"]
    assert setup["image"] == SERVICE["image"] == image["name"]
    assert f"{image['newName']}:{image['newTag']}" == compose()["services"]["app"]["image"]
    assert SETTINGS["CHECKPOINT_AUTO_SETUP"] == "false"
