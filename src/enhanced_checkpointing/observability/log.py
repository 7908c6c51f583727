"""Transitions as log lines for 3 a.m.; rate limits, redaction and the shield that all sinks share."""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Callable
from types import TracebackType
from weakref import WeakSet

from enhanced_checkpointing.errors import MOST_SHOWN, CheckpointerConfigurationError, redact, shortened
from enhanced_checkpointing.observability.events import (
    ConfigurationFault,
    DeadLettered,
    Diverged,
    Event,
    FailedOver,
    Notice,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    ProbeFinished,
    Telemetry,
    ThreadDrained,
)

LOGGER_NAME = "enhanced_checkpointing"

_HIDDEN_AT_MOST = 30.0  # seconds; the longest wait between two probes is 15
_NOTICE_METHODS = {"DEBUG": None, "INFO": "info", "WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}


_PLACE_IN_A_STATEMENT = re.compile(r"\s(?:at character \d+|LINE \d+:)")
"""PostgreSQL's position within a statement: the same fault in another statement counts as the same."""


class RateLimit:
    """Admits `burst` lines per `seconds` and counts those it holds back."""

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
    """Telemetry never makes a call fail: its errors end here, and are reported once a minute."""

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


class LoggingSink(Telemetry):
    """Writes one line per transition to `logging` or to any object with `info`, `warning` and `error` methods.

    Single operations, retries and probes are not logged: an hour of outage is a handful of lines. Raises
    `CheckpointerConfigurationError` when `logger` lacks one of the three methods. `keeps_writes` tells whether
    writes go to a journal in an outage.
    """

    def __init__(
        self, logger: object | None = None, clock: Callable[[], float] = time.monotonic, *, keeps_writes: bool = True
    ) -> None:
        self._logger = logging.getLogger(LOGGER_NAME) if logger is None else _checked(logger)
        self._clock = clock
        self._keeps_writes = keeps_writes
        # The logger is the part that broke, so its failure is reported past it.
        self._shield = Shield(_to_standard_error, clock)
        self._in_outage = False
        self._outage_shown = False
        self._hidden_opening: tuple[OutageStarted, float] | None = None
        self._outages = RateLimit(600.0, clock, burst=5)
        self._reopenings = RateLimit(60.0, clock)
        self._failovers = RateLimit(60.0, clock)
        self._unfinished_drains = {"paused": RateLimit(60.0, clock), "frozen": RateLimit(60.0, clock)}
        self._dead_letters = RateLimit(60.0, clock, burst=10)
        self._divergences = RateLimit(60.0, clock, burst=10)
        self._faults: dict[tuple[str, str], float] = {}

    def emit(self, event: Event) -> None:
        """Write the line of a transition; single calls and events by the thousand are left to spans and metrics."""
        with self._shield:
            self._write_line_of(event)

    def _write_line_of(self, event: Event) -> None:
        match event:
            case OutageStarted():
                self._outage_started(event)
            case PrimaryRecovered():
                self._primary_recovered(event)
            case OutageEnded():
                self._outage_ended(event)
            case ProbeFinished():
                self._show_hidden_outage()
            case FailedOver():
                self._failed_over(event)
            case ThreadDrained():
                self._thread_drained(event)
            case DeadLettered():
                self._dead_lettered(event)
            case Diverged():
                self._diverged(event)
            case ConfigurationFault():
                self._configuration_fault(event)
            case Notice() if (method := _NOTICE_METHODS.get(event.level.upper(), "warning")) is not None:
                self._write(method, event.message)
            case _:
                pass

    def _outage_started(self, event: OutageStarted) -> None:
        """Show a flapping primary as whole outages and a count of the others: never a start without its end."""
        held_back = self._reopenings.admit() if self._in_outage else self._outages.admit()
        self._in_outage = True
        if held_back is None:
            self._hidden_opening = event, self._clock()
        else:
            self._show_opening(event, held_back)

    def _show_opening(self, event: OutageStarted, held_back: int = 0) -> None:
        self._hidden_opening, self._outage_shown = None, True
        writes = "wait in the journal until it recovers" if self._keeps_writes else "are refused, as none is journaled"
        self._write(
            "warning",
            f"outage: the primary {event.backend} is not usable ({event.reason}). Live calls no longer touch it: "
            f"writes {writes}, reads are answered from warm memory where that is complete"
            f"{more_held_back(held_back, 'openings ')}",
        )

    def _show_hidden_outage(self) -> None:
        """Show the start of a hidden outage that lasts; probes come throughout an outage, so this runs often."""
        if self._hidden_opening is not None:
            event, opened = self._hidden_opening
            if self._clock() - opened >= _HIDDEN_AT_MOST:
                self._show_opening(event)

    def _primary_recovered(self, event: PrimaryRecovered) -> None:
        hidden, self._hidden_opening = self._hidden_opening, None
        if hidden is None:
            self._write(
                "info",
                f"the primary {event.backend} takes writes again after {event.outage_seconds:.1f} s; "
                f"{event.pending} journaled operations are being written to it now",
            )

    def _outage_ended(self, event: OutageEnded) -> None:
        shown = self._outage_shown or not self._in_outage
        self._in_outage, self._outage_shown, self._hidden_opening = False, False, None
        if not shown:
            return
        rest = (
            "the threads of the dead letters stay on the journal until they are mended"
            if event.dead_letters
            else "the journal is empty and the primary holds everything"
        )
        self._write(
            "info",
            f"outage of {event.backend} over after {event.outage_seconds:.1f} s: {event.journaled} operations "
            f"journaled, {event.drained} written to the primary, {event.dead_letters} dead letters, "
            f"{event.divergences} divergences; {rest}",
        )

    def _failed_over(self, event: FailedOver) -> None:
        if self._in_outage:
            return
        held_back = self._failovers.admit()
        if held_back is not None:
            self._write(
                "warning",
                f"the primary {event.backend} could not take a {event.operation} ({event.reason}): it is in the "
                f"journal and will be written to the primary from there{more_held_back(held_back)}",
            )

    def _thread_drained(self, event: ThreadDrained) -> None:
        limit = self._unfinished_drains.get(event.outcome)
        held_back = limit.admit() if limit is not None else None
        if held_back is None:
            return
        if event.outcome == "paused":
            method, rest = "info", "paused; the rest stays in the journal and is tried again"
        else:
            method, rest = "warning", "frozen; the rest stays in the journal until the refused operation is mended"
        self._write(
            method,
            f"draining thread {_id(event.thread_id)} into {event.backend}: {event.operations} operations written, "
            f"then {rest}{more_held_back(held_back, 'threads ')}",
        )

    def _dead_lettered(self, event: DeadLettered) -> None:
        held_back = self._dead_letters.admit()
        if held_back is not None:
            self._write(
                "error",
                f"dead letter: {event.backend} refuses a journaled {event.operation} of thread {_id(event.thread_id)} "
                f"for good ({event.error}). The operation is kept, the thread stays on the journal until it is mended, "
                f"other threads go on{more_held_back(held_back)}",
            )

    def _diverged(self, event: Diverged) -> None:
        held_back = self._divergences.admit()
        if held_back is not None:
            namespace = f" (namespace {_id(event.checkpoint_ns)})" if event.checkpoint_ns else ""
            journaled, kept = "it", f"Both branches are kept; the journaled one as {_id(event.kept_as)}"
            if event.deletion:
                journaled = "its deletion"
                kept = "The deletion was not applied and the other branch is kept; to end both, delete the thread again"
            self._write(
                "warning",
                f"divergence: thread {_id(event.thread_id)}{namespace} was written in {event.backend} by someone else "
                f"while this process journaled {journaled}: head {event.found_head} instead of {event.expected_head}. "
                f"{kept}{more_held_back(held_back)}",
            )

    def _configuration_fault(self, event: ConfigurationFault) -> None:
        now = self._clock()
        self._faults = {fault: written for fault, written in self._faults.items() if now - written < 300.0}
        error = _PLACE_IN_A_STATEMENT.split(event.error)[0]
        if (event.backend, error) not in self._faults:
            self._faults[event.backend, error] = now
            self._write(
                "error",
                f"the primary {event.backend} refuses for a permanent reason: {error}. To mend it: {event.fix}",
            )

    def _write(self, method: str, line: str) -> None:
        getattr(self._logger, method)(one_line(line))


class PoolNoiseFilter(logging.Filter):
    """Drops the warnings that psycopg's pool repeats while its database is away, for the pools that are ours.

    A record is ours when one of its arguments is the name of a pool that begins with `pool_prefix`, or one of our
    connections, claimed as the pool opened them. `folded` counts what was dropped; records of other pools and below
    WARNING pass untouched.
    """

    def __init__(self, pool_prefix: str) -> None:
        super().__init__()
        self._pool_prefix = pool_prefix
        self._connections: WeakSet[object] = WeakSet()
        self.folded = 0

    def claim(self, connection: object) -> None:
        """Mark a new connection as ours; meant for the pool's `configure` callback."""
        self._connections.add(connection)

    def install(self) -> None:
        """Start filtering; again is harmless."""
        logging.getLogger("psycopg.pool").addFilter(self)

    def remove(self) -> None:
        """Stop filtering; again is harmless."""
        logging.getLogger("psycopg.pool").removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING or not isinstance(record.args, tuple):
            return True
        if not any(self._is_ours(argument) for argument in record.args):
            return True
        self.folded += 1
        return False

    def _is_ours(self, argument: object) -> bool:
        return argument.startswith(self._pool_prefix) if isinstance(argument, str) else argument in self._connections


def _checked(logger: object) -> object:
    for name in ("info", "warning", "error"):
        method = getattr(logger, name, None)
        if not callable(method) or inspect.iscoroutinefunction(method):
            raise CheckpointerConfigurationError(
                f"logger_service needs a plain method {name}(message), and {type(logger).__name__} has none: "
                "pass a logging.Logger or leave it out"
            )
    return logger


def _to_standard_error(line: str) -> None:
    if logging.lastResort is not None:
        logging.lastResort.handle(logging.LogRecord(LOGGER_NAME, logging.WARNING, __file__, 0, line, None, None))


def _id(identifier: str) -> str:
    return shortened(identifier, MOST_SHOWN)
