"""The image of the example: what a linter says, and what a container of it may do."""

from __future__ import annotations

from tests.deploy.dockerfile import FILE, INSTRUCTIONS, instructions, last
from tests.deploy.parts import DEPLOY, ROOT, assert_passes, compose, document


def test_linter_has_nothing_to_say() -> None:
    assert_passes("hadolint", "--failure-threshold", "style", FILE)


def test_it_runs_as_nobody_in_particular_and_as_the_same_one_everywhere() -> None:
    user = last("USER")
    pod = document(DEPLOY / "kubernetes" / "stateful-set.yaml")["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{pod['runAsUser']}:{pod['runAsGroup']}" != "0:0"


def test_journal_is_on_the_volume_that_compose_and_kubernetes_mount() -> None:
    volume = last("VOLUME")
    assert f"CHECKPOINT_JOURNAL_DIR={volume}/" in last("ENV")
    mounted, _ = compose()["services"]["app"]["volumes"]
    assert mounted.endswith(f":{volume}")
    pod = document(DEPLOY / "kubernetes" / "stateful-set.yaml")["spec"]["template"]["spec"]
    assert volume in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]


def test_everything_that_is_copied_is_there_and_is_let_through() -> None:
    ignored = (FILE.with_name(f"{FILE.name}.dockerignore")).read_text().splitlines()
    assert "*" in ignored
    copied = [word for value in instructions("COPY") if "--from" not in value for word in value.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, source


def test_service_listens_on_the_port_that_is_exposed_and_asked() -> None:
    port = last("EXPOSE")
    assert f'"--port", "{port}"' in last("CMD")
    assert f":{port}/" in last("HEALTHCHECK")
    assert compose()["services"]["app"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    pod = document(DEPLOY / "kubernetes" / "stateful-set.yaml")["spec"]["template"]["spec"]
    assert [named["containerPort"] for named in pod["containers"][0]["ports"]] == [int(port)]


def test_both_stages_are_of_one_python() -> None:
    bases = [value.split()[0] for name, value in INSTRUCTIONS if name == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1, "a virtual environment works with the Python that made it"
