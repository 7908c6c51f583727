"""What a failed call means for the data, what may be done next, and what callers and operators are told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointUnavailableError, quoted, redact
from enhanced_checkpointing.observability.events import ConfigurationFault, Notice, Telemetry


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


NOT_STORED = (
    "It was not acknowledged: treat it as not stored, although the primary may still have taken it. "
    "Repeat it when the primary is back."
)


def unavailable(what: str, then: str) -> CheckpointUnavailableError:
    """`what` happened, as the beginning of a sentence; `then` says what it means and what to do."""
    return CheckpointUnavailableError(f"{what[0].upper()}{what[1:]}. {then}")


def explained(failed: CallFailed, what: str) -> BaseException:
    """The error that the caller gets: its own fault as the saver raised it, all else in our words, with its cause."""
    error = _in_our_words(failed, what)
    if error is not failed.error:  # an error must never be its own cause
        error.__cause__ = failed.error
    return error


def _in_our_words(failed: CallFailed, what: str) -> BaseException:
    match failed.kind:
        case FailureKind.DATA:
            return failed.error
        case FailureKind.CORRUPTION:
            return CheckpointCorruptionError(
                f"{what[0].upper()}{what[1:]}: stored data is damaged ({redact(failed.error)}). "
                "Nothing was changed; restore it from a backup."
            )
        case FailureKind.SATURATED:
            return unavailable(
                f"{what}: {failed.error}", "Raise CHECKPOINT_POOL_MAX_SIZE, or make fewer calls at once."
            )
    return unavailable(f"{what}: {redact(failed.error)}", failed.failure.fix or NOT_STORED)


def not_warm(thread_id: str) -> CheckpointUnavailableError:
    """What the warm copy says of a thread that it does not have."""
    return CheckpointUnavailableError(f"thread {quoted(thread_id)} is not warm")


def cold(thread_id: str, missing: CheckpointUnavailableError, failed: CallFailed | None) -> CheckpointUnavailableError:
    """A read that neither the primary nor the warm copy can answer; `missing` says what the warm copy lacks."""
    fix = f" {failed.failure.fix}" if failed is not None and failed.failure.fix else ""
    return unavailable(
        f"thread {quoted(thread_id)} cannot be read: the primary is not available and {missing}",
        f"Nothing is lost; this is not 'not found'.{fix}",
    )


def alarm(telemetry: Telemetry, backend: str, failed: CallFailed) -> None:
    """Tell of damaged data, and of a setting or privilege that is wrong; of nothing else."""
    if failed.kind is FailureKind.CORRUPTION:
        telemetry.emit(Notice("ERROR", f"Stored checkpoints are damaged: {redact(failed.error)}"))
    if failed.kind is FailureKind.CONFIGURATION:
        fix = failed.failure.fix or "Ask the server's log."
        telemetry.emit(ConfigurationFault(backend, redact(failed.error), fix))
