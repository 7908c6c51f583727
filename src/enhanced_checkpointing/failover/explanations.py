"""What a caller is told when a call cannot be served: what happened, what it means for the data, what to do. Pure."""

from __future__ import annotations

from enhanced_checkpointing.errors import CheckpointCorruptionError, CheckpointUnavailableError, quoted, redact
from enhanced_checkpointing.resilience.failure_kinds import CallFailed, FailureKind

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
