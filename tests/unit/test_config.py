"""`CheckpointerConfig`: what it accepts, what it refuses and how it says so, and that it never shows a secret."""

import json
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import SecretStr, ValidationError

from enhanced_checkpointing.config import (
    CheckpointerConfig,
    CheckpointerType,
    ConfigFields,
    SettingFields,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
    variable_of,
)
from enhanced_checkpointing.errors import CheckpointerConfigurationError

SECRET = "S3cr3tPassw0rd"
URL = f"postgresql://user:{SECRET}@db.example:5432/app"

# Name: (least, most), for every setting that is a number.
RANGES: dict[str, tuple[float, float]] = {
    "deadline": (0.01, 3600),
    "retries": (0, 10),
    "breaker_failures": (1, 1000),
    "probe_interval": (0.01, 3600),
    "probe_backoff_min": (0.01, 3600),
    "probe_backoff_max": (0.01, 3600),
    "journal_max_bytes": (4096, 2**50),
    "standby_max_bytes": (0, 2**50),
    "pool_min_size": (0, 1000),
    "pool_max_size": (1, 1000),
    "postgres_prepare_threshold": (0, 1_000_000),
    "drain_concurrency": (1, 1000),
    "shutdown_grace": (0, 3600),
    "retention_active_days": (0, 36_500),
    "retention_completed_days": (0, 36_500),
    "retention_failed_days": (0, 36_500),
    "retention_interval": (1, 31 * 86_400),
}
# The other end of a pair that must be in order, set so that only the range of the first is tried.
PARTNERS: dict[str, dict[str, float]] = {
    "probe_backoff_min": {"probe_backoff_max": 3600},
    "probe_backoff_max": {"probe_backoff_min": 0.01},
    "pool_min_size": {"pool_max_size": 1000},
    "pool_max_size": {"pool_min_size": 0},
}


def refusal(make: Callable[[], object]) -> str:
    """Return the message of the error that `make` must raise, after checking that nothing of it shows the secret."""
    with pytest.raises(CheckpointerConfigurationError) as raised:
        make()
    shown = "".join(traceback.format_exception(raised.value))
    chain = (raised.value.__cause__, raised.value.__context__)
    assert chain == (None, None), "an error behind ours would carry the values"
    message = str(raised.value)
    assert message in shown
    assert SECRET not in message
    return message


def refuse(**fields: Any) -> str:
    return refusal(lambda: CheckpointerConfig(**fields))


def test_defaults_are_those_of_the_design() -> None:
    config = CheckpointerConfig()
    assert config.model_dump() == {
        "environment": "development",
        "enabled": True,
        "auto_setup": True,
        "require_primary": False,
        "deadline": 5.0,
        "retries": 2,
        "breaker_failures": 3,
        "probe_interval": 5.0,
        "probe_backoff_min": 0.5,
        "probe_backoff_max": 15.0,
        "on_outage": "journal",
        "on_unknown_thread": "start_fresh",
        "on_divergence": "newest_wins",
        "journal": "memory",
        "journal_dir": Path(".checkpoints/journal"),
        "journal_adopt": "own",
        "journal_key": None,
        "journal_max_bytes": 268_435_456,
        "standby_max_bytes": 67_108_864,
        "pool_min_size": 1,
        "pool_max_size": 10,
        "postgres_schema": None,
        "postgres_prepare_threshold": 0,
        "drain_concurrency": 4,
        "shutdown_grace": 10.0,
        "retention": "off",
        "retention_active_days": 7.0,
        "retention_completed_days": 30.0,
        "retention_failed_days": 3.0,
        "retention_keep": None,
        "retention_interval": 3600.0,
        "retention_refresh_on_read": False,
        "accept_unencrypted": False,
        "thread_ownership": "enforce",
        "status_token": None,
        "checkpointer_type": CheckpointerType.MEMORY,
        "connection_string": None,
        "database_path": "checkpoints.sqlite",
        "enable_async": True,
        "thread_safe": True,
        "serde": None,
    }


def test_every_field_has_a_meaning() -> None:
    for name, field in CheckpointerConfig.model_fields.items():
        assert field.description, name
        assert "\n" not in field.description, name


def test_the_typed_keywords_are_exactly_the_fields() -> None:
    assert set(ConfigFields.__annotations__) == set(CheckpointerConfig.model_fields)


@pytest.mark.parametrize("chosen", ["sqlite", "SQLite", " SQLITE ", CheckpointerType.SQLITE])
def test_checkpointer_type_is_accepted_as_enum_and_in_any_case(chosen: str) -> None:
    config = CheckpointerConfig(checkpointer_type=chosen)
    assert config.checkpointer_type is CheckpointerType.SQLITE
    assert config.backend_name == "sqlite"


@pytest.mark.parametrize(
    ("chosen", "backend_name"),
    [
        (CheckpointerType.MEMORY, "memory"),
        (CheckpointerType.SQLITE, "sqlite"),
        (CheckpointerType.ASYNC_SQLITE, "sqlite"),
        (CheckpointerType.POSTGRES, "postgres"),
        (CheckpointerType.ASYNC_POSTGRES, "postgres"),
        ("Async_Postgres", "postgres"),
    ],
)
def test_both_spellings_of_a_type_name_the_same_backend(chosen: str, backend_name: str) -> None:
    assert CheckpointerConfig(checkpointer_type=chosen, connection_string=URL).backend_name == backend_name


def test_another_name_is_kept_as_the_name_of_a_third_party_backend() -> None:
    config = CheckpointerConfig(checkpointer_type="Redis", connection_string="redis://localhost")
    assert config.checkpointer_type == config.backend_name == "Redis"
    assert config.connection_string == SecretStr("redis://localhost")


@pytest.mark.parametrize("chosen", ["", "  ", 3, None])
def test_a_type_that_is_no_name_is_refused(chosen: object) -> None:
    message = refuse(checkpointer_type=chosen)
    assert message.startswith("checkpointer_type (chosen by CHECKPOINT_ENVIRONMENT): it is not the name of a backend")


def test_config_cannot_be_changed() -> None:
    config = CheckpointerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.deadline = 1.0
    assert config.deadline == 5.0


def test_every_number_has_a_tested_range() -> None:
    defaults = CheckpointerConfig().model_dump()
    numbers = {name for name, value in defaults.items() if isinstance(value, int | float) and value is not True}
    assert numbers - {"require_primary", "retention_refresh_on_read", "accept_unencrypted"} == set(RANGES)


@pytest.mark.parametrize("name", RANGES)
@given(data=st.data())
def test_a_number_within_its_range_is_kept(name: str, data: st.DataObject) -> None:
    least, most = RANGES[name]
    is_float = isinstance(SettingFields.model_fields[name].default, float)
    within: st.SearchStrategy[float] = (
        st.floats(least, most) if is_float else st.integers(int(least), int(most))
    ) | st.sampled_from([least, most])
    value = data.draw(within)
    fields: dict[str, Any] = {**PARTNERS.get(name, {}), name: value}
    assert getattr(CheckpointerConfig(**fields), name) == value


@pytest.mark.parametrize("name", RANGES)
@given(data=st.data())
def test_a_number_outside_its_range_is_refused_by_name_and_variable(name: str, data: st.DataObject) -> None:
    least, most = RANGES[name]
    is_float = isinstance(SettingFields.model_fields[name].default, float)
    value: float = data.draw(
        st.floats(allow_nan=True).filter(lambda number: not least <= number <= most)
        if is_float
        else st.integers().filter(lambda number: not least <= number <= most)
    )
    message = refuse(**{**PARTNERS.get(name, {}), name: value})
    assert message.startswith(f"{name} (CHECKPOINT_{name.upper()}): input should be ")
    assert "Fix: give" in message


def test_the_message_gives_the_range_the_unit_and_the_meaning() -> None:
    assert refuse(deadline=0) == (
        "deadline (CHECKPOINT_DEADLINE): input should be greater than or equal to 0.01. Fix: give a number from 0.01 "
        "to 3600 s, or leave it out for the default. Its meaning: Total time that one call may take, waiting and "
        "retries included."
    )


@pytest.mark.parametrize("name", SettingFields.model_fields)
def test_a_value_of_the_wrong_type_is_refused_without_showing_it(name: str) -> None:
    message = refuse(**{name: [SECRET]})
    assert message.startswith(f"{name} (CHECKPOINT_{name.upper()}): ")
    assert "Fix: " in message


def test_all_faults_are_reported_at_once() -> None:
    message = refuse(deadline=0, retries=-1, on_outage="hope")
    assert [line.split(" ")[0] for line in message.splitlines()] == ["deadline", "retries", "on_outage"]
    assert "'journal' or 'raise'" in message


def test_a_misspelt_field_is_refused_with_the_closest_one() -> None:
    assert refuse(deadlin=1) == "deadlin: there is no such setting. Fix: did you mean deadline (CHECKPOINT_DEADLINE)?"
    assert "use one of environment, enabled" in refuse(xyzzy=1)


def test_every_way_of_construction_raises_our_error() -> None:
    refusal(lambda: CheckpointerConfig.model_validate({"connection_string": SECRET, "deadline": SECRET}))
    refusal(lambda: CheckpointerConfig.model_validate_json(json.dumps({"deadline": SECRET})))
    assert refusal(lambda: CheckpointerConfig.model_validate(SECRET)).startswith("CheckpointerConfig: ")


@pytest.mark.parametrize("environment", ["development", "testing"])
def test_unknown_threads_start_fresh_outside_production(environment: str) -> None:
    assert CheckpointerConfig(environment=environment).on_unknown_thread == "start_fresh"


def test_unknown_threads_raise_in_production_unless_asked_for_by_name() -> None:
    assert CheckpointerConfig(environment="production").on_unknown_thread == "raise"
    assert CheckpointerConfig(environment="production", on_unknown_thread=None).on_unknown_thread == "raise"
    chosen = CheckpointerConfig(environment="production", on_unknown_thread="start_fresh")
    assert chosen.on_unknown_thread == "start_fresh"


def test_choices_are_accepted_in_any_case() -> None:
    fields: dict[str, Any] = {"environment": " Production ", "journal": "OFF", "on_divergence": "Quarantine"}
    config = CheckpointerConfig(**fields)
    assert (config.environment, config.journal, config.on_divergence) == ("production", "off", "quarantine")


@pytest.mark.parametrize("environment", ["development", "testing", "production"])
def test_journal_is_durable_unless_the_primary_is_in_memory(environment: Any) -> None:
    assert CheckpointerConfig(environment=environment).journal == "memory"
    assert create_sqlite_checkpointer("a.sqlite", environment=environment).journal == "durable"
    assert create_postgres_checkpointer(URL, environment=environment).journal == "durable"
    assert CheckpointerConfig(checkpointer_type="theirs", environment=environment).journal == "durable"


@pytest.mark.parametrize("journal", ["durable", "memory", "off"])
def test_journal_that_was_chosen_by_name_is_kept_over_any_primary(journal: Any) -> None:
    assert CheckpointerConfig(journal=journal).journal == journal
    assert create_sqlite_checkpointer("a.sqlite", journal=journal).journal == journal


def test_journal_that_follows_the_primary_was_not_chosen_by_name_and_follows_the_next_one_too() -> None:
    config = CheckpointerConfig()
    assert "journal" not in config.model_fields_set
    assert config.with_overrides(checkpointer_type="sqlite").journal == "durable"


def test_thread_safe_false_is_refused_with_the_reason() -> None:
    assert "thread_safe (set in code): the saver is always thread-safe" in refuse(thread_safe=False)


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({"probe_backoff_min": 16}, "PROBE_BACKOFF_MIN", "PROBE_BACKOFF_MAX"),
        ({"probe_backoff_max": 0.1}, "PROBE_BACKOFF_MIN", "PROBE_BACKOFF_MAX"),
        ({"pool_min_size": 11}, "POOL_MIN_SIZE", "POOL_MAX_SIZE"),
    ],
)
def test_a_least_above_its_most_is_refused_naming_both(fields: dict[str, Any], first: str, second: str) -> None:
    message = refuse(**fields)
    assert f"CHECKPOINT_{first}): it is greater than" in message
    assert f"CHECKPOINT_{second})" in message


@pytest.mark.parametrize("name", ["public", "_a1", "a" * 63])
def test_a_plain_schema_name_is_accepted(name: str) -> None:
    assert CheckpointerConfig(postgres_schema=name).postgres_schema == name


@pytest.mark.parametrize("name", ["", "1a", "Upper", "a-b", 'a"; drop', "pg_mine", "a" * 64, "a\n", "ä"])
def test_a_schema_name_that_needs_quotes_is_refused(name: str) -> None:
    assert refuse(postgres_schema=name).startswith("postgres_schema (CHECKPOINT_POSTGRES_SCHEMA): it is not a schema")


@pytest.mark.parametrize(
    ("given_value", "kept"), [(0, 0), (5, 5), ("7", 7), ("off", None), ("None", None), (None, None)]
)
def test_prepare_threshold_off_means_never(given_value: Any, kept: int | None) -> None:
    assert CheckpointerConfig(postgres_prepare_threshold=given_value).postgres_prepare_threshold == kept


@pytest.mark.parametrize("path", ["a.sqlite", Path("/var/lib/a.sqlite"), ":memory:", r"C:\data\a.sqlite"])
def test_a_database_path_is_kept_as_given(path: str | Path) -> None:
    assert create_sqlite_checkpointer(path).database_path == path


def test_a_path_in_the_home_is_expanded_as_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert create_sqlite_checkpointer("~/a.sqlite").database_path == "/home/ada/a.sqlite"
    assert create_sqlite_checkpointer(Path("~/a.sqlite")).database_path == Path("/home/ada/a.sqlite")
    assert create_sqlite_checkpointer("~/a.sqlite", journal_dir="~/journal").journal_dir == Path("/home/ada/journal")
    assert "a user without a home" in refuse(checkpointer_type="sqlite", database_path="~no-such-user/a.sqlite")


@pytest.mark.parametrize("path", ["file:a.sqlite", "file::memory:?cache=shared", "file:/a", "file:///a?mode=ro"])
def test_a_uri_of_sqlite_is_refused_with_what_to_give(path: str) -> None:
    said = refuse(checkpointer_type="sqlite", database_path=path)
    assert said.startswith("database_path (SQLITE_PATH): it is a URI of SQLite. Fix: give the path in it")


@pytest.mark.parametrize("path", ["", " ", "/", Path(), f"sqlite:///{SECRET}", Path(f"sqlite:///{SECRET}"), "a\0b", 3])
def test_a_database_path_that_names_no_file_is_refused(path: Any) -> None:
    assert refuse(checkpointer_type="sqlite", database_path=path).startswith("database_path (SQLITE_PATH): ")


def test_a_url_as_journal_directory_is_refused_without_showing_it() -> None:
    assert "CHECKPOINT_JOURNAL_DIR): it is a URL" in refuse(journal_dir=URL)


@pytest.mark.parametrize(
    "connection_string",
    [
        URL,
        "postgresql://",
        "postgresql:///app?host=/run/postgresql",
        f"postgresql://user:?#{SECRET}@h/d",
        "postgresql://user:p%40ss@[::1]:5432/app?sslmode=require",
        "postgresql://one:5432,two:5433/app",
        f"host=db.example password='{SECRET}' dbname=app",
        "host=@abstract dbname=we@ird",
    ],
)
def test_connection_strings_that_libpq_reads_are_accepted(connection_string: str) -> None:
    config = create_postgres_checkpointer(connection_string)
    assert config.connection_string == SecretStr(connection_string)
    assert create_postgres_checkpointer(SecretStr(connection_string)) == config


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "POSTGRES", "postgresql+asyncpg", "postgresql+psycopg", "postgres+psycopg2"]
)
def test_other_spellings_of_the_scheme_become_the_one_of_libpq(scheme: str) -> None:
    assert create_postgres_checkpointer(f" {scheme}://u:{SECRET}@h/d\n").connection_string == SecretStr(
        f"postgresql://u:{SECRET}@h/d"
    )


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_postgres_without_a_connection_string_is_refused(missing: str | None) -> None:
    message = refuse(checkpointer_type="postgres", connection_string=missing)
    assert message.startswith("connection_string (DATABASE_URL or POSTGRES_URL): a PostgreSQL primary needs")


@pytest.mark.parametrize(
    ("connection_string", "fault"),
    [
        (SECRET, "neither a postgresql:// URL nor host="),
        (f'"{URL}"', "neither a postgresql:// URL nor host="),
        (f"mysql://user:{SECRET}@h/d", "neither a postgresql:// URL nor host="),
        (f"postgresql://user:%zz{SECRET}@h/d", "a '%' in it"),
        (f"postgresql://user:x/?{SECRET}@h/d", "parameter after '?'"),
        (f"postgresql://user:{SECRET}@h/d?ssl=require", "asyncpg's ssl is sslmode"),
        (f"postgresql://user:x@{SECRET}@h/d", "its host or database contains '@'"),
        (f"postgresql://user:1234/{SECRET}@h/d", "its host or database contains '@'"),
        (f"postgresql://user:{SECRET}/x@h/d", "its host or database contains '@'"),
        (f"postgresql://user:{SECRET}/d", "its port is not a number"),
        (f"host=h port={SECRET}", "its port is not a number"),
        (f"host=h {SECRET}=1", "an option that PostgreSQL does not know"),
        (f"host=h password='{SECRET}", "PostgreSQL cannot read it"),
        (f"postgresql://u:{SECRET}@[::1/d", "PostgreSQL cannot read it"),
        (f"postgresql://u:{SECRET}\0@h/d", "it contains a NUL character"),
        (f"host=\udcff{SECRET}", "PostgreSQL cannot read it"),
    ],
)
def test_a_malformed_connection_string_is_refused_with_its_fault_and_without_its_text(
    connection_string: str, fault: str
) -> None:
    message = refuse(checkpointer_type="postgres", connection_string=connection_string)
    assert message.startswith("connection_string (DATABASE_URL or POSTGRES_URL): ")
    assert fault in message
    assert "Fix: give postgresql://user:password@host:5432/database without quotes" in message


@given(
    before=st.text(max_size=4),
    after=st.text(max_size=4),
    shape=st.sampled_from(
        [
            "postgresql://u:{}@h/d",
            "postgres://{}",
            "host=h password={}",
            "{}",
            "postgresql://u@h:{}/d",
            "postgresql://{}@h",
        ]
    ),
)
def test_no_connection_string_whatever_it_contains_shows_its_secret(before: str, after: str, shape: str) -> None:
    try:
        config = create_postgres_checkpointer(shape.format(before + SECRET + after))
        shown = repr(config) + str(config) + json.dumps(config.redacted()) + config.model_dump_json()
    except CheckpointerConfigurationError as error:
        shown = "".join(traceback.format_exception(error))
    assert SECRET not in shown


def test_other_backends_do_not_judge_the_connection_string() -> None:
    assert CheckpointerConfig(connection_string=f"mysql://u:{SECRET}@h/d").backend_name == "memory"


def test_serializer_is_kept_and_anything_else_refused() -> None:
    serde = JsonPlusSerializer()
    config = CheckpointerConfig(serde=serde)
    assert config.serde is serde
    assert config.model_dump(mode="json")["serde"] == config.redacted()["serde"] == "JsonPlusSerializer"
    assert refuse(serde=SECRET).startswith("serde (set in code): ")


def test_no_printed_form_shows_the_secret() -> None:
    class TalkativeSerializer(JsonPlusSerializer):
        def __repr__(self) -> str:
            return f"key={SECRET}"

    config = create_postgres_checkpointer(URL, serde=TalkativeSerializer())
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump(mode="json"))):
        assert SECRET not in shown
        assert "db.example" not in shown
    assert config.connection_string is not None
    assert config.connection_string.get_secret_value() == URL


def test_redacted_is_plain_json_of_every_field() -> None:
    redacted = create_postgres_checkpointer(URL, postgres_schema="agents", journal_dir="/tmp/password=abc").redacted()
    assert json.loads(json.dumps(redacted)) == redacted
    assert set(redacted) == set(CheckpointerConfig.model_fields)
    assert redacted["checkpointer_type"] == "postgres"
    assert redacted["connection_string"] == "**********"
    assert redacted["journal_dir"] == "/tmp/password=***"
    assert CheckpointerConfig().redacted()["connection_string"] is None


def test_with_overrides_returns_a_checked_copy_and_leaves_the_original() -> None:
    original = create_postgres_checkpointer(URL, deadline=2.0, environment="production")
    changed = original.with_overrides(retries=0)
    assert changed == create_postgres_checkpointer(URL, deadline=2.0, environment="production", retries=0)
    assert original.retries == 2
    refusal(lambda: original.with_overrides(deadline=-1))
    refusal(lambda: original.with_overrides(connection_string=SECRET))


def test_with_overrides_lets_defaults_follow_the_environment_but_not_what_was_chosen() -> None:
    assert CheckpointerConfig(environment="production").with_overrides(environment="testing").on_unknown_thread == (
        "start_fresh"
    )
    chosen = CheckpointerConfig(environment="production", on_unknown_thread="raise")
    assert chosen.with_overrides(environment="testing").on_unknown_thread == "raise"


@given(
    deadline=st.floats(0.01, 3600),
    retries=st.integers(0, 10),
    threshold=st.none() | st.integers(0, 100),
    environment=st.sampled_from(["development", "testing", "production"]),
)
def test_a_config_equals_what_is_made_of_its_own_values(
    deadline: float, retries: int, threshold: int | None, environment: str
) -> None:
    config = create_postgres_checkpointer(
        URL, deadline=deadline, retries=retries, postgres_prepare_threshold=threshold, environment=environment
    )
    assert CheckpointerConfig(**config.model_dump()) == config
    assert config.with_overrides() == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_factories_choose_the_type_and_take_any_setting() -> None:
    memory = create_memory_checkpointer(deadline=1.0)
    assert (memory.checkpointer_type, memory.deadline) == (CheckpointerType.MEMORY, 1.0)
    sqlite = create_sqlite_checkpointer(enable_async=False)
    assert (sqlite.backend_name, sqlite.database_path, sqlite.enable_async) == ("sqlite", "checkpoints.sqlite", False)
    postgres = create_postgres_checkpointer(URL, pool_max_size=3)
    assert (postgres.backend_name, postgres.pool_max_size) == ("postgres", 3)


def test_every_field_names_its_variable() -> None:
    assert variable_of("deadline") == "CHECKPOINT_DEADLINE"
    assert variable_of("connection_string") == "DATABASE_URL or POSTGRES_URL"
    assert variable_of("database_path") == "SQLITE_PATH"
    assert variable_of("serde") == "set in code"
    assert variable_of("dev_use_sqlite") == "DEV_USE_SQLITE"
