"""What both sinks need to stay harmless: lines without secrets, fewer of them, and errors that end here."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from enhanced_checkpointing.errors import redact

LOGGER_NAME = "enhanced_checkpointing"


class RateLimit:
    """Admits `burst` lines per `seconds` and counts what it holds back."""

    def __init__(self, seconds: float, clock: Callable[[], float], burst: int = 1) -> None:
        self._seconds = seconds
        self._clock = clock
        self._burst = burst
        self._window_started: float | None = None
        self._admitted = 0
        self._held_back = 0

    def admit(self) -> int | None:
        """Return how many were held back before this one, or None when this one is held back too."""
        now = self._clock()
        if self._window_started is None or now - self._window_started >= self._seconds:
            self._window_started, self._admitted = now, 0
        if self._admitted >= self._burst:
            self._held_back += 1
            return None
        self._admitted += 1
        held_back, self._held_back = self._held_back, 0
        return held_back


class Shield:
    """Telemetry is never the reason why a call fails: an error of its own ends here, and is reported once a minute."""

    def __init__(self, report: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._limit = RateLimit(60.0, clock)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        held_back = self._limit.admit()
        if held_back is not None:
            self._report(
                one_line(
                    f"telemetry failed and was skipped, checkpoints are not affected: "
                    f"{type(error).__name__}: {redact(error)}{more_held_back(held_back)}"
                )
            )
        return True


def one_line(text: str) -> str:
    """Return `text` without secrets and without line breaks, as errors of a database often have them."""
    return " ".join(redact(text).split())


def more_held_back(held_back: int, what: str = "") -> str:
    return f" ({held_back} more {what}since the last such line)" if held_back else ""
