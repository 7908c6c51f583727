"""What a look at something found: a value that can be shown to people and to scripts, and the exit codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

__all__ = [
    "ExitCode",
    "Finding",
    "Status",
    "exit_code_of",
    "failed",
    "fine",
    "skipped",
    "thread_index_missing",
    "warning",
]


class ExitCode(IntEnum):
    """What a script learns from every command; 130 is a command that was stopped by Ctrl-C, 141 an `export -` that was
    cut off by its reader."""

    FINE = 0
    WRONG = 1
    """The command found something wrong, or could not do all that was asked for."""
    UNKNOWN = 2
    """Wrong usage or configuration, or nobody could find out."""


class Status(StrEnum):
    """How a check ended."""

    FINE = "fine"
    WARNING = "warning"
    """It works, and somebody should know this."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be looked at; another finding says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `what` is the case, `means` says what that does to the application, `fix` what to do about it.

    `details` are plain JSON types. There are no secrets in any of it.
    """

    name: str
    status: Status
    what: str
    means: str = ""
    fix: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_problem(self) -> bool:
        return self.status in (Status.WARNING, Status.FAILED)

    def as_json(self) -> dict[str, Any]:
        """The finding in plain JSON types."""
        return {
            "name": self.name,
            "status": self.status.value,
            "what": self.what,
            "means": self.means,
            "fix": self.fix,
            "details": dict(self.details),
        }


def fine(name: str, what: str, **details: Any) -> Finding:
    """All is well."""
    return Finding(name, Status.FINE, what, details=details)


def skipped(name: str, what: str) -> Finding:
    """Nobody looked, for the reason that `what` says."""
    return Finding(name, Status.SKIPPED, what)


def warning(name: str, what: str, means: str, fix: str, **details: Any) -> Finding:
    """It works, and somebody should know."""
    return Finding(name, Status.WARNING, what, means, fix, details)


def failed(name: str, what: str, means: str, fix: str, **details: Any) -> Finding:
    """It does not work."""
    return Finding(name, Status.FAILED, what, means, fix, details)


def thread_index_missing(why: str = "") -> Finding:
    """Our index is not there, for want of which nothing fails."""
    return warning(
        "database.thread_index",
        f"The index of the threads of a user is missing{f' ({why})' if why else ''}.",
        "Everything works; to list the threads of one user, those of all others are looked at, too.",
        "Run `checkpointing setup`, which makes it while writes go on.",
    )


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """Warnings do not make a command fail: with them, an application starts and works."""
    return ExitCode.WRONG if any(found.status is Status.FAILED for found in findings) else ExitCode.FINE
