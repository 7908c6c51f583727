"""Objects that live beside the checkpointer, such as a LangGraph store: their health is reported, their life shared."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from langgraph.store.base import BaseStore

from enhanced_checkpointing.errors import redact

HEALTH_NAMESPACE = ("enhanced_checkpointing",)
"""Where a store is asked for a key that is never there, to see whether it answers."""


class Companions:
    """By name; asked and closed on the event loop of whoever asks or closes, for they are the application's own."""

    def __init__(self) -> None:
        self._companions: dict[str, object] = {}
        self._reports: dict[str, dict[str, Any]] = {}

    def add(self, name: str, companion: object) -> bool:
        """Take a `BaseStore`, or an object with `health_check` or `close`; False if it is none of these."""
        if not isinstance(companion, BaseStore) and not _method(
            companion, "health_check", "aclose", "close", "cleanup"
        ):
            return False
        self._companions[name] = companion
        self._reports[name] = {"healthy": True, "checked": False}
        return True

    @property
    def reports(self) -> dict[str, dict[str, Any]]:
        """The newest reports, without asking."""
        return dict(self._reports)

    async def check(self, seconds: float) -> None:
        """Ask each for its health, for at most `seconds` each."""
        for name, companion in self._companions.items():
            try:
                async with asyncio.timeout(seconds):
                    self._reports[name] = await _ask(companion)
            except Exception as error:  # noqa: BLE001  # whatever a companion raises, the report is the place for it
                self._reports[name] = {
                    "healthy": False,
                    "checked": True,
                    "error": redact(error) or type(error).__name__,
                }

    async def close(self, seconds: float) -> list[str]:
        """Close each, last first, for at most `seconds` each; return what went wrong, one line each."""
        faults = []
        while self._companions:
            name, companion = self._companions.popitem()
            close = _method(companion, "aclose", "close", "cleanup")
            try:
                async with asyncio.timeout(seconds):
                    if close is not None:
                        await _result(close())
            except Exception as error:  # noqa: BLE001  # one that cannot be closed must not keep the others open
                faults.append(f"{name} could not be closed: {_described(error)}")
        return faults


async def _ask(companion: object) -> dict[str, Any]:
    check = _method(companion, "health_check")
    if check is None:
        if isinstance(companion, BaseStore):
            await companion.aget(HEALTH_NAMESPACE, "health")
        return {"healthy": True, "checked": True}
    answer = await _result(check())
    if isinstance(answer, dict):
        status = answer.get("healthy", answer.get("overall_status", answer.get("status", True)))
        healthy = status is True or (isinstance(status, str) and status.lower() in ("healthy", "ok", "up"))
        return {"healthy": healthy, "checked": True, "details": redact(answer)}
    return {"healthy": answer is None or bool(answer), "checked": True}


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {redact(error)}"


async def _result(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _method(companion: object, *names: str) -> Any:
    """The first of these methods that an object has, or None."""
    return next((method for name in names if callable(method := getattr(companion, name, None))), None)
