"""What a failed call means for the data, and so what may be done next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from enhanced_checkpointing.errors import redact


class FailureKind(Enum):
    """See the table in `docs/guarantees.md`; each backend maps its own errors onto these."""

    TRANSIENT = "transient"
    """Nothing was applied: repeat, then journal."""
    UNKNOWN = "unknown"
    """It may have been applied: journal the same operation with the same ids."""
    OUTAGE = "outage"
    """The primary says of itself that it cannot serve: journal, open the breaker at once."""
    SATURATED = "saturated"
    """All connections were busy with our own calls: back-pressure, the breaker does not move."""
    CONFIGURATION = "configuration"
    """A credential, privilege, database or table is missing: waiting does not help."""
    DATA = "data"
    """The caller's data or request is at fault: raise to the caller, never fail over."""
    CORRUPTION = "corruption"
    """Stored data is damaged: raise, alarm."""


BREAKER_FAILURES = frozenset({FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.OUTAGE})
"""The kinds that speak against the health of the backend."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One classified failure.

    `answered` tells whether the server itself spoke (a refused connection or silence did not); `fix` is what an
    operator should do where waiting does not help.
    """

    kind: FailureKind
    error: BaseException
    answered: bool = False
    fix: str = ""


Classify = Callable[[BaseException], Failure]


class CallFailed(Exception):
    """A guarded call that did not succeed. It never reaches the application: the engine decides what to do."""

    def __init__(self, failure: Failure, *, timed_out: bool = False, admitted: bool = True) -> None:
        super().__init__(f"{failure.kind.value}: {type(failure.error).__name__}: {redact(failure.error)}")
        self.failure = failure
        self.timed_out = timed_out
        self.admitted = admitted
        """False: the breaker was open and the backend was not touched."""

    @property
    def kind(self) -> FailureKind:
        return self.failure.kind

    @property
    def at_fault(self) -> bool:
        """Whether the operation itself, or what it meets, is at fault, so that trying it again does not mend it."""
        return self.kind in (FailureKind.DATA, FailureKind.CORRUPTION)

    @property
    def error(self) -> BaseException:
        return self.failure.error
