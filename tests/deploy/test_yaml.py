"""All YAML of deploy/, as a linter reads it: duplicate keys, indentation, what YAML takes for a boolean."""

from __future__ import annotations

from tests.deploy.parts import DEPLOY, assert_passes, documents


def test_linter_has_nothing_to_say() -> None:
    assert_passes("yamllint", "--strict", "--config-file", DEPLOY / ".yamllint.yaml", DEPLOY)


def test_every_file_is_read() -> None:
    files = [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml")]
    assert len(files) >= 12
    for file in files:
        assert documents(file), file
