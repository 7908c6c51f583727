"""The alert rules: Prometheus accepts them, they fire when they should, and each says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.parts import ALERTS, DEPLOY, ROOT, assert_passes, document, judged, rules

TESTS = ALERTS.with_name("alerts.test.yml")
NAMES = [f"{rule['alert']}-{rule['labels']['severity']}" for rule in rules()]

Change = Callable[[dict[str, Any]], None]


def never(rule: dict[str, Any]) -> None:
    rule["expr"] = "vector(0) > 1"


def always(rule: dict[str, Any]) -> None:
    rule["expr"], rule["for"] = "max by (instance) (checkpointer_state) >= 0", "0s"


def at_once(rule: dict[str, Any]) -> None:
    rule["for"] = "0s"


CHANGES = [
    pytest.param(index, change, id=f"{name}-{change.__name__}")
    for index, (name, rule) in enumerate(zip(NAMES, rules(), strict=True))
    for change in (never, always, *([at_once] if "for" in rule else []))
]


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    assert_passes("promtool", "check", "rules", "--lint-fatal", ALERTS)
    assert_passes("promtool", "check", "config", ALERTS.with_name("prometheus.yml"))


def test_alerts_fire_on_the_series_that_mean_trouble_and_on_no_others() -> None:
    assert_passes("promtool", "test", "rules", TESTS)


@pytest.mark.parametrize(("index", "change"), CHANGES)
def test_rule_that_is_changed_fails_its_tests(index: int, change: Change, tmp_path: Path) -> None:
    changed = document(ALERTS)
    rule = changed["groups"][0]["rules"][index]
    tests = document(TESTS)
    # Each test takes Prometheus a while: only those that expect the alert, or none at all.
    expected = f'{{alertname="{rule["alert"]}", severity="{rule["labels"]["severity"]}"}}'
    tests["tests"] = [test for test in tests["tests"] if expected in str(test) or test is tests["tests"][0]]
    assert len(tests["tests"]) > 1, "no test expects this alert"
    change(rule)
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(changed))
    (tmp_path / TESTS.name).write_text(yaml.safe_dump(tests))
    verdict = judged("promtool", "test", "rules", tmp_path / TESTS.name)
    assert verdict.returncode == 1, "no test notices the difference"
    assert "FAILED" in verdict.stdout + verdict.stderr


@pytest.mark.parametrize("rule", rules(), ids=NAMES)
def test_alert_says_what_it_means_for_the_data_and_where_to_read_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "data", "runbook_url"}
    path, anchor = rule["annotations"]["runbook_url"].split("#")
    assert anchor == rule["alert"].lower()
    assert anchor in anchors(ROOT / path)


def test_run_book_has_a_section_for_each_alert_and_for_no_other() -> None:
    sections = re.findall(r"^### (Checkpointer\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert sections == list(dict.fromkeys(rule["alert"] for rule in rules())), "in the order of the rules"


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page has, made of its headings as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_of_the_deployment_lists_every_alert() -> None:
    readme = (DEPLOY / "README.md").read_text()
    for rule in rules():
        assert f"`{rule['alert']}`" in readme
