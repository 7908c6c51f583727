"""From the environment to the configuration: every variable arrives, every profile chooses, every fault is named."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from enhanced_checkpointing.config import CheckpointerConfig, CheckpointerType, SettingFields, variable_of
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.settings import (
    CheckpointerSettings,
    get_development_checkpointer_config,
    get_production_checkpointer_config,
    get_testing_checkpointer_config,
)

SECRET = "S3cr3tPassw0rd"
URL = f"postgresql://user:{SECRET}@db.example:5432/app"
OTHER_URL = f"postgresql://other:{SECRET}@other.example/app"

# Fields that only code can set, because the profile or a Python object decides them.
SET_IN_CODE = {"checkpointer_type", "enable_async", "thread_safe", "serde"}

# Field: (variable, its text, what arrives in the field). No value is the default, so that arriving is seen.
SAMPLES: dict[str, tuple[str, str, Any]] = {
    "environment": ("CHECKPOINT_ENVIRONMENT", "testing", "testing"),
    "enabled": ("CHECKPOINT_ENABLED", "false", False),
    "auto_setup": ("CHECKPOINT_AUTO_SETUP", "0", False),
    "require_primary": ("CHECKPOINT_REQUIRE_PRIMARY", "yes", True),
    "deadline": ("CHECKPOINT_DEADLINE", "2.5", 2.5),
    "retries": ("CHECKPOINT_RETRIES", "1", 1),
    "breaker_failures": ("CHECKPOINT_BREAKER_FAILURES", "7", 7),
    "probe_interval": ("CHECKPOINT_PROBE_INTERVAL", "9", 9.0),
    "probe_backoff_min": ("CHECKPOINT_PROBE_BACKOFF_MIN", "0.25", 0.25),
    "probe_backoff_max": ("CHECKPOINT_PROBE_BACKOFF_MAX", "30", 30.0),
    "on_outage": ("CHECKPOINT_ON_OUTAGE", "raise", "raise"),
    "on_unknown_thread": ("CHECKPOINT_ON_UNKNOWN_THREAD", "raise", "raise"),
    "on_divergence": ("CHECKPOINT_ON_DIVERGENCE", "QUARANTINE", "quarantine"),
    "accept_unencrypted": ("CHECKPOINT_ACCEPT_UNENCRYPTED", "true", True),
    "thread_ownership": ("CHECKPOINT_THREAD_OWNERSHIP", "RECORD", "record"),
    "journal": ("CHECKPOINT_JOURNAL", "off", "off"),
    "journal_dir": ("CHECKPOINT_JOURNAL_DIR", "/var/lib/journal", Path("/var/lib/journal")),
    "journal_adopt": ("CHECKPOINT_JOURNAL_ADOPT", "ALL", "all"),
    "journal_key": ("CHECKPOINT_JOURNAL_KEY", f"{SECRET}-{'k' * 32}", SecretStr(f"{SECRET}-{'k' * 32}")),
    "journal_max_bytes": ("CHECKPOINT_JOURNAL_MAX_BYTES", "1048576", 1_048_576),
    "standby_max_bytes": ("CHECKPOINT_STANDBY_MAX_BYTES", "0", 0),
    "pool_min_size": ("CHECKPOINT_POOL_MIN_SIZE", "2", 2),
    "pool_max_size": ("CHECKPOINT_POOL_MAX_SIZE", "20", 20),
    "postgres_schema": ("CHECKPOINT_POSTGRES_SCHEMA", "agents", "agents"),
    "postgres_prepare_threshold": ("CHECKPOINT_POSTGRES_PREPARE_THRESHOLD", "off", None),
    "drain_concurrency": ("CHECKPOINT_DRAIN_CONCURRENCY", "8", 8),
    "shutdown_grace": ("CHECKPOINT_SHUTDOWN_GRACE", "0", 0.0),
    "retention": ("CHECKPOINT_RETENTION", "ON", "on"),
    "retention_active_days": ("CHECKPOINT_RETENTION_ACTIVE_DAYS", "0.5", 0.5),
    "retention_completed_days": ("CHECKPOINT_RETENTION_COMPLETED_DAYS", "90", 90.0),
    "retention_failed_days": ("CHECKPOINT_RETENTION_FAILED_DAYS", "1", 1.0),
    "retention_keep": ("CHECKPOINT_RETENTION_KEEP", "20", 20),
    "retention_interval": ("CHECKPOINT_RETENTION_INTERVAL", "600", 600.0),
    "retention_refresh_on_read": ("CHECKPOINT_RETENTION_REFRESH_ON_READ", "true", True),
    "status_token": ("CHECKPOINT_STATUS_TOKEN", f"{SECRET}-and-more", SecretStr(f"{SECRET}-and-more")),
    "connection_string": ("DATABASE_URL", URL, SecretStr(URL)),
    "database_path": ("SQLITE_PATH", "/data/agents.sqlite", "/data/agents.sqlite"),
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.upper().startswith("CHECKPOINT_") or name in {
            variable_of(n) for n in CheckpointerSettings.model_fields
        }:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(environment: str | None = None, **overrides: Any) -> str:
    with pytest.raises(CheckpointerConfigurationError) as raised:
        CheckpointerSettings().to_config(environment, **overrides)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    assert SECRET not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", sorted(set(CheckpointerConfig.model_fields) - SET_IN_CODE))
def test_each_variable_reaches_its_field(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, text, expected = SAMPLES[name]
    assert getattr(CheckpointerSettings().to_config(), name) != expected, "the sample must differ from the default"
    monkeypatch.setenv(variable, text)
    config = CheckpointerSettings().to_config()
    assert getattr(config, name) == expected
    assert name in config.model_fields_set


@pytest.mark.parametrize("name", SettingFields.model_fields)
def test_an_override_wins_over_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, text, expected = SAMPLES[name]
    default = getattr(CheckpointerConfig(), name)
    monkeypatch.setenv(variable, text)
    overrides: dict[str, Any] = {name: default}
    assert getattr(CheckpointerSettings().to_config(**overrides), name) == default != expected


def test_without_any_variable_the_result_is_the_default_config() -> None:
    assert CheckpointerSettings().to_config() == CheckpointerConfig()
    assert CheckpointerSettings().to_config().model_fields_set == {"checkpointer_type"}


def test_settings_and_config_share_their_fields() -> None:
    for name, field in SettingFields.model_fields.items():
        for model in (CheckpointerSettings, CheckpointerConfig):
            assert repr(model.model_fields[name]) == repr(field)


def test_variables_count_in_any_case_and_empty_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("checkpoint_deadline", "1.5")
    monkeypatch.setenv("CHECKPOINT_RETRIES", "")
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("postgres_url", URL)
    config = get_production_checkpointer_config()
    assert (config.deadline, config.retries, config.connection_string) == (1.5, 2, SecretStr(URL))


def test_a_dotenv_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CHECKPOINT_DEADLINE=1\n")
    assert CheckpointerSettings().deadline == 5.0


def test_prefix_does_not_apply_to_the_well_known_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_DATABASE_URL", URL)
    assert CheckpointerSettings().database_url is None


def test_settings_are_frozen_and_never_show_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("POSTGRES_URL", OTHER_URL)
    settings = CheckpointerSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.deadline = 1.0
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


@given(deadline=st.floats(0.01, 3600), size=st.integers(4096, 2**50))
def test_numbers_survive_the_way_through_the_environment(deadline: float, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECKPOINT_DEADLINE", str(deadline))
        patch.setenv("CHECKPOINT_JOURNAL_MAX_BYTES", str(size))
        config = CheckpointerSettings().to_config()
    assert (config.deadline, config.journal_max_bytes) == (deadline, size)


def test_development_uses_memory_even_where_a_database_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", URL)
    config = get_development_checkpointer_config()
    assert (config.environment, config.backend_name) == ("development", "memory")


def test_development_uses_sqlite_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_USE_SQLITE", "true")
    monkeypatch.setenv("SQLITE_PATH", "dev.sqlite")
    config = get_development_checkpointer_config()
    assert (config.backend_name, config.database_path) == ("sqlite", "dev.sqlite")


def test_testing_uses_memory_whatever_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEV_USE_SQLITE", "true")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "production")
    config = get_testing_checkpointer_config()
    assert (config.environment, config.backend_name) == ("testing", "memory")


def test_production_uses_postgres_and_database_url_wins(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("POSTGRES_URL", OTHER_URL)
    assert get_production_checkpointer_config().connection_string == SecretStr(OTHER_URL)
    monkeypatch.setenv("DATABASE_URL", URL.replace("postgresql://", "postgresql+asyncpg://"))
    config = get_production_checkpointer_config()
    assert (config.environment, config.backend_name) == ("production", "postgres")
    assert config.connection_string == SecretStr(URL)
    assert config.on_unknown_thread == "raise"
    assert caplog.records == []


def test_production_without_a_url_uses_sqlite_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SQLITE_PATH", "/data/prod.sqlite")
    config = get_production_checkpointer_config()
    assert (config.backend_name, config.database_path) == ("sqlite", "/data/prod.sqlite")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "neither DATABASE_URL nor POSTGRES_URL is set" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_chosen_primary_is_not_replaced_by_the_profile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert get_production_checkpointer_config(connection_string=URL).backend_name == "postgres"
    assert get_production_checkpointer_config(checkpointer_type="sqlite").backend_name == "sqlite"
    monkeypatch.setenv("DATABASE_URL", URL)
    config = get_development_checkpointer_config(checkpointer_type=CheckpointerType.ASYNC_POSTGRES)
    assert (config.backend_name, config.connection_string) == ("postgres", SecretStr(URL))
    assert caplog.records == []


def test_the_argument_wins_over_checkpoint_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", "Testing")
    assert CheckpointerSettings().to_config().environment == "testing"
    assert CheckpointerSettings().to_config("production").environment == "production"


def test_an_unknown_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("staging").startswith(
        "environment (CHECKPOINT_ENVIRONMENT): input should be 'development', 'testing'"
    )
    monkeypatch.setenv("CHECKPOINT_ENVIRONMENT", SECRET)
    assert refusal().startswith("environment (CHECKPOINT_ENVIRONMENT): input should be 'development', 'testing'")


@pytest.mark.parametrize(
    "name",
    [name for name in SettingFields.model_fields if name != "journal_dir"] + ["dev_use_sqlite"],  # any text is a path
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(name), SECRET)
    message = refusal()
    assert message.startswith(f"{name} ({variable_of(name)}): ")
    assert "Fix: " in message


@pytest.mark.parametrize("variable", ["DATABASE_URL", "POSTGRES_URL"])
@pytest.mark.parametrize("url", [SECRET, f"postgresql://u:x@{SECRET}@h/d", f"sqlite:///{SECRET}"])
def test_a_bad_url_is_refused_without_showing_it(variable: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, url)
    assert variable in refusal("production")


def test_a_url_as_sqlite_path_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQLITE_PATH", URL)
    assert refusal().startswith("database_path (SQLITE_PATH): it is a URL")


def test_durable_journal_can_be_asked_for_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_JOURNAL", " Durable ")
    config = CheckpointerSettings().to_config("testing")
    assert config.journal == "durable"
    assert "journal" in config.model_fields_set


def test_values_that_do_not_fit_together_are_refused_unless_an_override_mends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHECKPOINT_PROBE_BACKOFF_MIN", "20")
    assert "CHECKPOINT_PROBE_BACKOFF_MAX" in refusal()
    assert CheckpointerSettings().to_config(probe_backoff_max=40.0).probe_backoff_min == 20


def test_a_misspelt_variable_is_warned_of_once_by_name_and_never_by_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CHECKPOINT_DEADLIN", SECRET)
    CheckpointerSettings().to_config()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "CHECKPOINT_DEADLIN is not a setting and has no effect; the closest one is CHECKPOINT_DEADLINE."
    )


EMPTY_IS_REFUSED = ("CHECKPOINT_JOURNAL_KEY", "CHECKPOINT_STATUS_TOKEN")


def text_of_default(default: object) -> str:
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_env_example_lists_every_setting_with_its_default_unit_and_meaning() -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text(encoding="utf-8")
    listed = re.findall(r"^# (.+)\n#([A-Z_]+)=(.*)$", example, flags=re.MULTILINE)
    assert len(listed) == len(re.findall(r"^#?\w+=", example, flags=re.MULTILINE)), "each has its meaning above it"
    expected = set()
    for name, field in CheckpointerSettings.model_fields.items():
        unit = f" ({field.json_schema_extra['unit']})" if isinstance(field.json_schema_extra, dict) else ""
        expected.add((f"{field.description}{unit}", variable_of(name), text_of_default(field.default)))
    assert set(listed) == expected
    assert len(listed) == len(expected)


def test_env_example_taken_over_whole_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text(encoding="utf-8")
    for variable, text in re.findall(r"^#([A-Z_]+)=(.*)$", example, flags=re.MULTILINE):
        if text or variable not in EMPTY_IS_REFUSED:
            monkeypatch.setenv(variable, text)
    assert CheckpointerSettings().to_config() == CheckpointerConfig()


@pytest.mark.parametrize("variable", EMPTY_IS_REFUSED)
def test_secret_that_is_set_and_empty_is_refused_and_opens_nothing(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable.lower() if variable.endswith("KEY") else variable, "")
    assert re.search(f"{variable}.*remove the variable", refusal())
    CheckpointerSettings(journal_key="k" * 32, status_token="t" * 16)  # type: ignore[arg-type]  # as people write it
