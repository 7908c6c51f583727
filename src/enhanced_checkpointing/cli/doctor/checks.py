"""The doctor's table of checks, and what a check answers.

A check is one function that answers one question from the facts of its part. To add one, write such a function beside
the others of its part, and put it into that part's table:

    @checks("journal.room", "Has the journal's disk room for an outage?")
    def room(facts: JournalFacts, config: CheckpointerConfig) -> Answer:
        if facts.free_bytes < config.journal_max_bytes:
            return warning(what="…", means="…", fix="…")
        return fine("…")

It opens nothing: what it needs and the facts lack is added where they are asked for. Several answers are yielded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.text import Text

from enhanced_checkpointing.cli.output import ExitCode, paragraph
from enhanced_checkpointing.errors import redact

NO_START = "An application that starts now is refused its start."


class Status(StrEnum):
    """How a check ended."""

    FINE = "fine"
    WARNING = "warning"
    """It works, and an operator should know this."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """It could not be checked; another finding says why."""


STYLES = {Status.FINE: "green", Status.WARNING: "bold yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}
WORDS = {Status.FINE: "ok", Status.WARNING: "WARN", Status.FAILED: "FAIL", Status.SKIPPED: "-"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: `what` is the case, what it `means` for the application and its data, and how to `fix` it.

    Without a `name` it gets that of its check. `details` are plain JSON types. There are no secrets in any of it.
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
        return asdict(self)

    def print(self, console: Console) -> None:
        """Print it in a line; a problem with what it means, and what to do."""
        word = Text(f"{WORDS[self.status]:<5}", style=STYLES[self.status])
        if not self.is_problem:
            paragraph(console, word, self.what)
            return
        paragraph(console, Text.assemble(word, ("what   ", "dim")), self.what, style="bold")
        paragraph(console, Text("     means  ", style="dim"), self.means)
        paragraph(console, Text("     fix    ", style="dim"), self.fix, style="cyan")


def fine(what: str, *, name: str = "", **details: Any) -> Finding:
    """All is well."""
    return Finding(name, Status.FINE, what, details=details)


def skipped(what: str, *, name: str = "") -> Finding:
    """It was not checked, for the reason that `what` says."""
    return Finding(name, Status.SKIPPED, what)


def warning(what: str, means: str, fix: str, *, name: str = "", **details: Any) -> Finding:
    """It works, and an operator should know."""
    return Finding(name, Status.WARNING, what, means, fix, details)


def failed(what: str, means: str, fix: str, *, name: str = "", **details: Any) -> Finding:
    """It does not work."""
    return Finding(name, Status.FAILED, what, means, fix, details)


def thread_index_missing(why: str = "") -> Finding:
    """Our index is not there; nothing fails without it."""
    return warning(
        f"The index of the threads of a user is missing{f' ({why})' if why else ''}.",
        "Everything works, but listing one user's threads reads those of all others, too.",
        "Run `checkpointing setup`, which makes it while writes go on.",
        name="database.thread_index",
    )


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """Warnings do not make a command fail: with them, an application starts and works."""
    return ExitCode.WRONG if any(found.status is Status.FAILED for found in findings) else ExitCode.FINE


Answer = Finding | Iterable[Finding] | None
"""Of a check: one finding, several, or none where the question does not arise."""

Facts = TypeVar("Facts")
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class Check(Generic[Facts, Given]):
    """One row of the table. `name` is part of the JSON, which scripts read."""

    name: str
    question: str
    look: Callable[[Facts, Given], Answer]

    def answers(self, facts: Facts, given: Given) -> list[Finding]:
        """Its findings. A check that fails is a finding itself, and keeps no other from being made."""
        try:
            answer = self.look(facts, given)
            found = [answer] if isinstance(answer, Finding) else [*(answer or ())]
        except Exception as error:  # noqa: BLE001  # the other checks are to be made all the same
            what = f"{self.question} This check failed: {type(error).__name__}: {redact(error)}"
            found = [failed(what, "The answer is not known.", "Please report this message.")]
        return [one if one.name else replace(one, name=self.name) for one in found]


class Checks(Generic[Facts, Given]):
    """The checks of one part, in the order in which they are shown; called with name and question, it adds one."""

    def __init__(self) -> None:
        self.table: list[Check[Facts, Given]] = []

    def __call__(
        self, name: str, question: str
    ) -> Callable[[Callable[[Facts, Given], Answer]], Callable[[Facts, Given], Answer]]:
        def added(look: Callable[[Facts, Given], Answer]) -> Callable[[Facts, Given], Answer]:
            self.table.append(Check(name, question, look))
            return look

        return added

    def judge(self, facts: Facts, given: Given) -> list[Finding]:
        """The findings of all checks."""
        return [finding for check in self.table for finding in check.answers(facts, given)]
