"""Which database a backend is: the same for every process that means it, and without a secret."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing import CheckpointerConfig, create_memory_checkpointer, create_sqlite_checkpointer
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from enhanced_checkpointing.config import create_postgres_checkpointer
from enhanced_checkpointing.serialization import SharingSerializer


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def postgres(connection_string: str, **fields: Any) -> str:
    return PostgresBackend(create_postgres_checkpointer(connection_string, **fields), SharingSerializer()).database_id()


@pytest.mark.parametrize(
    ("connection_string", "home"),
    [
        ("postgresql://ann:secret@db/prod", "postgres://db:5432/prod"),
        ("postgres://bob@DB:5432/prod?sslmode=require", "postgres://db:5432/prod"),
        ("host=db dbname=prod user=ann password='se cret'", "postgres://db:5432/prod"),
        ("postgresql://db:6432/prod", "postgres://db:6432/prod"),
        ("postgresql://b:1,a:2,a:1/prod", "postgres://a:1,a:2,b:1/prod"),
        ("host=b,a port=6432 dbname=prod", "postgres://a:6432,b:6432/prod"),
        ("host=b,a port=, dbname=prod", "postgres://a:5432,b:5432/prod"),
        ("postgresql:///prod?host=/Run/Socket", "postgres:///Run/Socket:5432/prod"),
        ("hostaddr=10.0.0.1 dbname=prod", "postgres://10.0.0.1:5432/prod"),
        ("postgresql://db/prod?options=-csearch_path%3Dours,public", "postgres://db:5432/prod?schema=ours"),
        ("service=checkpoints dbname=prod host=db", "postgres://db:5432/prod?service=checkpoints"),
    ],
)
def test_home_of_postgres_is_its_hosts_and_database_and_nothing_of_the_user(connection_string: str, home: str) -> None:
    assert postgres(connection_string) == home


def test_schema_is_part_of_the_home() -> None:
    assert postgres("postgresql://db/prod", postgres_schema="ours") == "postgres://db:5432/prod?schema=ours"


def test_what_a_connection_string_leaves_out_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "db", "PGPORT": "6432", "PGDATABASE": "prod", "PGUSER": "ann"}.items():
        monkeypatch.setenv(name, value)
    assert postgres("application_name=x") == "postgres://db:6432/prod"
    monkeypatch.delenv("PGDATABASE")
    named_after_the_user = postgres("application_name=x")
    assert "ann" not in named_after_the_user
    monkeypatch.setenv("PGUSER", "bob")
    assert postgres("application_name=x") != named_after_the_user, "it is another database"
    monkeypatch.delenv("PGHOST")
    assert postgres("dbname=prod") == "postgres://local:6432/prod"


def test_home_of_sqlite_is_the_file_whatever_way_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")

    def home(path: str | Path) -> str:
        return SqliteBackend(create_sqlite_checkpointer(path), SharingSerializer()).database_id()

    assert home("a.sqlite") == home(tmp_path / "link" / "a.sqlite") == str(tmp_path / "real" / "a.sqlite")
    assert home(":memory:") == "memory"


def test_home_of_memory_is_memory() -> None:
    assert MemoryBackend(create_memory_checkpointer(), SharingSerializer()).database_id() == "memory"


def test_home_of_any_other_backend_is_told_apart_without_being_named() -> None:
    class Other(Backend):
        name = "other"

    def home(**fields: Any) -> str:
        return Other(CheckpointerConfig(checkpointer_type="other", **fields), SharingSerializer()).database_id()

    prod = home(connection_string="other://ann:secret@db/prod")
    assert prod.startswith("other:")
    assert "prod" not in prod
    assert prod == home(connection_string="other://bob:another@db/prod") == home(connection_string="other://db/prod")
    assert prod != home(connection_string="other://ann:secret@db/staging")
    pairs = home(connection_string="server=db user=ann password=secret")
    assert pairs == home(connection_string="server=db user=bob password='an other'")
    assert pairs != home(connection_string="server=elsewhere user=ann password=secret")
    assert home(database_path="a") != home(database_path="b")
