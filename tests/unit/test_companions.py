"""Stores and other objects that live beside the checkpointer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore

from enhanced_checkpointing.companions import Companions
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


class Checked:
    """Answers a health check with what it was given, or raises it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def health_check(self) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class AsyncChecked(Checked):
    """The same, asynchronously."""

    async def health_check(self) -> object:
        await asyncio.sleep(0)
        return super().health_check()


class Closing:
    """Notes that it was closed."""

    def __init__(self, log: list[str], name: str, error: Exception | None = None) -> None:
        self._log, self._name, self._error = log, name, error

    async def aclose(self) -> None:
        self._log.append(self._name)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._log.append(f"{self._name}, by the wrong method")


async def checked(companion: object, seconds: float = 1.0) -> dict[str, Any]:
    companions = Companions()
    assert companions.add("part", companion)
    await companions.check(seconds)
    return companions.reports["part"]


def test_what_has_neither_health_nor_an_end_is_not_taken() -> None:
    companions = Companions()
    assert not companions.add("part", object())
    assert not companions.add("part", None)
    assert companions.reports == {}


@pytest.mark.parametrize("companion", [InMemoryStore(), Checked(True), Closing([], "part")])
def test_what_was_taken_is_well_until_it_is_asked(companion: object) -> None:
    companions = Companions()
    assert companions.add("part", companion)
    assert companions.reports == {"part": {"healthy": True, "checked": False}}


async def test_store_is_asked_by_a_read() -> None:
    assert await checked(InMemoryStore()) == {"healthy": True, "checked": True}


async def test_store_that_cannot_be_read_is_unhealthy_and_says_why_without_secrets() -> None:
    class Broken(InMemoryStore):
        async def aget(self, *arguments: Any, **options: Any) -> Any:
            raise ConnectionError("no route to postgresql://ada:hunter2@host/db")

    report = await checked(Broken())
    assert report == {"healthy": False, "checked": True, "error": "no route to postgresql://ada:***@host/db"}


async def test_companion_that_can_only_be_closed_is_taken_to_be_well() -> None:
    assert await checked(Closing([], "part")) == {"healthy": True, "checked": True}


@pytest.mark.parametrize("kind", [Checked, AsyncChecked])
@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (True, True),
        (False, False),
        (None, True),
        (0, False),
        ({"healthy": True}, True),
        ({"healthy": False, "status": "ok"}, False),
        ({"overall_status": "healthy"}, True),
        ({"overall_status": "degraded", "status": "ok"}, False),
        ({"status": "OK"}, True),
        ({"status": "up"}, True),
        ({"status": "down"}, False),
        ({"status": 1}, False),
        ({}, True),
    ],
)
async def test_common_ways_to_say_healthy_are_understood(kind: type[Checked], answer: object, healthy: bool) -> None:
    report = await checked(kind(answer))
    assert report["healthy"] is healthy
    assert report["checked"] is True
    assert json.loads(json.dumps(report)) == report


async def test_details_of_an_answer_are_shown_without_secrets() -> None:
    report = await checked(Checked({"healthy": True, "url": "redis://:hunter2@host", "password": "hunter2"}))
    assert "redis://" in report["details"]
    assert "hunter2" not in report["details"]


@pytest.mark.parametrize("kind", [Checked, AsyncChecked])
async def test_check_that_raises_is_unhealthy(kind: type[Checked]) -> None:
    assert await checked(kind(RuntimeError("out of memory"))) == {
        "healthy": False,
        "checked": True,
        "error": "out of memory",
    }


async def test_error_without_a_text_is_called_by_its_type() -> None:
    assert (await checked(Checked(KeyError())))["error"] == "KeyError"


async def test_check_that_hangs_is_bounded_and_unhealthy() -> None:
    class Hanging:
        async def health_check(self) -> None:
            await asyncio.sleep(30)

    started_at = now()
    assert await checked(Hanging(), 0.03) == {"healthy": False, "checked": True, "error": "TimeoutError"}
    assert now() - started_at == pytest.approx(0.03)


async def test_companion_that_recovered_is_healthy_again() -> None:
    companions, companion = Companions(), Checked(RuntimeError("down"))
    companions.add("part", companion)
    await companions.check(1.0)
    companion.answer = True
    await companions.check(1.0)
    assert companions.reports["part"] == {"healthy": True, "checked": True}


def test_reports_are_a_copy() -> None:
    companions = Companions()
    companions.add("part", Checked(True))
    companions.reports.clear()
    assert "part" in companions.reports


async def test_all_are_closed_last_first_and_only_once() -> None:
    companions, log = Companions(), list[str]()
    for name in ("first", "second"):
        companions.add(name, Closing(log, name))
    assert await companions.close(1.0) == []
    assert log == ["second", "first"]
    assert await companions.close(1.0) == []
    assert log == ["second", "first"]


async def test_one_that_cannot_be_closed_does_not_keep_the_others_open() -> None:
    companions, log = Companions(), list[str]()
    companions.add("first", Closing(log, "first"))
    companions.add("second", Closing(log, "second", OSError("password=hunter2 refused")))
    assert await companions.close(1.0) == ["second could not be closed: OSError: password=*** refused"]
    assert log == ["second", "first"]


async def test_closing_that_hangs_is_bounded() -> None:
    class Hanging:
        async def cleanup(self) -> None:
            await asyncio.sleep(30)

    companions = Companions()
    companions.add("part", Hanging())
    (fault,) = await companions.close(0.03)
    assert fault.startswith("part could not be closed: TimeoutError")


async def test_plain_close_and_nothing_to_close_are_both_fine() -> None:
    log: list[str] = []

    class Plain:
        def close(self) -> None:
            log.append("closed")

    companions = Companions()
    companions.add("plain", Plain())
    companions.add("checked", Checked(True))
    assert await companions.close(1.0) == []
    assert log == ["closed"]


def test_base_store_is_what_langgraph_calls_a_store() -> None:
    assert isinstance(InMemoryStore(), BaseStore)
