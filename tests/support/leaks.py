"""Watches that a test leaves nothing behind: no task, no thread, no file descriptor."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from typing import Any


class LeakWatch:
    """Runs a test and fails it when, `grace_seconds` after its end, there is more than before it."""

    def __init__(self, grace_seconds: float = 2.0) -> None:
        self.grace_seconds = grace_seconds

    def run(self, test: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """Call `test`, if asynchronous in a loop of its own; raises `AssertionError` that names each leak."""
        before = _threads_and_descriptors()
        with warnings.catch_warnings():
            # What was dropped instead of closed speaks up when it is collected, and pytest turns that into a failure.
            warnings.simplefilter("error", ResourceWarning)
            if inspect.iscoroutinefunction(test):
                asyncio.run(self._run_and_count_tasks(test(**arguments)), debug=False)
            else:
                test(**arguments)
            gc.collect()  # a connect that timed out in psycopg holds its socket in a cycle with its traceback
        deadline = time.monotonic() + self.grace_seconds
        while left := _threads_and_descriptors() - before:
            assert time.monotonic() < deadline, f"left behind: {sorted(left)}"
            time.sleep(0.01)

    async def _run_and_count_tasks(self, test: Coroutine[Any, Any, None]) -> None:
        # In the loop, as asyncio.run() cancels what is left at its end, and so hides it.
        await test
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            _, left = await asyncio.wait(others, timeout=self.grace_seconds)
            assert not left, f"left behind: {sorted(map(repr, left))}"


def _threads_and_descriptors() -> set[str]:
    threads = {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}
    return threads | set(_descriptors())


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"descriptor {name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the one that read this very list
            continue
    return found
