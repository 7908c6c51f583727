"""Backends are found by name through entry points, those of others as ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from enhanced_checkpointing import CheckpointerConfig, EnhancedCheckpointerManager
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.backends.postgres.backend import PostgresBackend
from enhanced_checkpointing.backends.registry import GROUP, find_backend
from enhanced_checkpointing.backends.sqlite.backend import SqliteBackend
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from tests.support.author import config_of

MODULE = """
from langgraph.checkpoint.memory import InMemorySaver
from enhanced_checkpointing.backends.base import Backend

class ValkeyBackend(Backend):
    name = "valkey"
    db_system = "valkey"

    async def open(self):
        self.saver = InMemorySaver(serde=self.serializer)

def not_a_class():
    pass

class NotABackend:
    pass
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A distribution on the path, as pip would install it; the name of its module."""
    module = "third_party_backend_of_a_test"
    (tmp_path / f"{module}.py").write_text(MODULE)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{GROUP}]\n"
        f"valkey = {module}:ValkeyBackend\n"
        f"broken = {module}_that_is_missing:Backend\n"
        f"nameless = {module}:NoSuchClass\n"
        f"function = {module}:not_a_class\n"
        f"stranger = {module}:NotABackend\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return module


@pytest.mark.parametrize(
    ("name", "backend"), [("memory", MemoryBackend), ("sqlite", SqliteBackend), ("postgres", PostgresBackend)]
)
def test_our_own_backends_are_found_on_the_same_path(name: str, backend: type[Backend]) -> None:
    assert find_backend(name) is backend
    assert backend.name == name


def test_backend_of_somebody_else_is_found_by_its_name(third_party: str) -> None:
    found = find_backend("valkey")
    assert found.__module__ == third_party
    assert issubclass(found, Backend)


async def test_backend_of_somebody_else_carries_a_manager(third_party: str) -> None:
    config = CheckpointerConfig(checkpointer_type="valkey")
    async with EnhancedCheckpointerManager(config) as manager:
        assert manager.health_status["primary_checkpointer"]["backend"] == "valkey"
        saver = manager.get_checkpointer()
        assert saver is not None
        assert await saver.aget_tuple(config_of("thread")) is None
        assert (await manager.health_check())["overall_status"] == "healthy"


def test_name_that_nobody_registered_is_refused_with_those_that_there_are(third_party: str) -> None:
    with pytest.raises(CheckpointerConfigurationError, match=r"'redis'.*known: .*memory.*postgres.*sqlite.*valkey"):
        find_backend("redis")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "cannot be imported: No module named"),
        ("nameless", "cannot be imported"),
        ("function", "is not a subclass"),
        ("stranger", "is not a subclass"),
    ],
)
def test_entry_point_that_is_no_backend_is_refused_with_what_it_names(third_party: str, name: str, says: str) -> None:
    with pytest.raises(CheckpointerConfigurationError, match=f"'{name}' \\({third_party}.*{says}.*Nothing was opened"):
        find_backend(name)


async def test_manager_with_an_unknown_backend_does_not_start() -> None:
    manager = EnhancedCheckpointerManager(CheckpointerConfig(checkpointer_type="redis"))
    with pytest.raises(CheckpointerConfigurationError, match="'redis'"):
        await manager.initialize()
    assert manager.health_status["overall_status"] == "unhealthy"
    await manager.cleanup()
