"""How commands print: one JSON object on stdout with `--json`, else text that is readable at 80 columns."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from enhanced_checkpointing.cli.configuration import RefusedError, UsageError
from enhanced_checkpointing.cli.findings import ExitCode, Finding, Status
from enhanced_checkpointing.cli.safe_text import clean
from enhanced_checkpointing.cli.streams import CUT_OFF, flush_bytes
from enhanced_checkpointing.errors import LONGEST_TEXT, CheckpointerError, redact, shortened
from enhanced_checkpointing.journal.disk import reason

__all__ = [
    "MOST_JSON",
    "age",
    "ask",
    "guarded",
    "line",
    "listed",
    "one_size",
    "paragraph",
    "plural",
    "print_json",
    "problem",
    "progress_to_stderr",
    "stdout",
]

STYLES = {Status.FINE: "green", Status.WARNING: "bold yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}

WORDS = {Status.FINE: "ok", Status.WARNING: "WARN", Status.FAILED: "FAIL", Status.SKIPPED: "-"}


class Terminal(Console):
    """Where people read. Nothing is coloured by what it looks like, and no text makes the terminal do anything: ids of
    threads and errors of servers are whatever somebody chose.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, stderr=stderr)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=clean(part.text))


def stdout() -> Console:
    """Where what a command found is printed for people."""
    return Terminal()


MOST_JSON = 4 * 1024 * 1024
"""Bytes of a command's JSON, but for values that were asked for: what was stored does not set the size of a report."""


def print_json(content: dict[str, Any], *, whole: bool = False) -> None:
    """The one object of a command that was asked for JSON. Of what is too large, but for `whole`, long lists are cut,
    and `cut` says where, and how long they are."""
    print(json.dumps(content if whole else _within(content, MOST_JSON), indent=2, default=str), flush=True)


def _within(content: dict[str, Any], most: int) -> dict[str, Any]:
    kept, found, cut = 4096, content, dict[str, int]()
    while kept and len(json.dumps(found, indent=2, default=str)) > most:
        kept //= 4
        cut = {}
        found = _cut(content, kept, "", cut)
    return {**found, "cut": cut} if cut else content


def _cut(content: Any, kept: int, where: str, cut: dict[str, int]) -> Any:
    if isinstance(content, str):
        return shortened(content, LONGEST_TEXT)
    if isinstance(content, dict):
        rest = len(content) - kept if len(content) > max(kept, 64) else 0  # as what is named by threads
        if rest:
            cut[where] = len(content)
        some = [*content.items()][: len(content) - rest]
        return {key: _cut(value, kept, f"{where}.{key}" if where else key, cut) for key, value in some}
    if isinstance(content, (list, tuple)):
        if len(content) > kept:
            cut[where] = max(len(content), cut.get(where, 0))
        return [_cut(one, kept, f"{where}[]", cut) for one in content[:kept]]
    return content


def guarded(run: Callable[[], ExitCode], *, as_json: bool) -> int:
    """Run a command. A refusal ends it with one message and exit code 1; what keeps it from finding out, with 2."""
    try:
        code = int(run())
        flush_bytes()
        return code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except RefusedError as refused:
        if as_json:
            print_json({"status": "failed", "error": str(refused), **refused.details})
        else:
            print(clean(str(refused)), file=sys.stderr)
        return int(ExitCode.WRONG)
    except BrokenPipeError:
        return CUT_OFF
    except (UsageError, CheckpointerError, OSError) as error:
        what = _explained(error)
        if as_json:
            print_json({"status": "unknown", "error": what})
        else:
            print(clean(what), file=sys.stderr)
        return int(ExitCode.UNKNOWN)


def _explained(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{reason(error)}. Nothing was changed. Run this as the user that the application runs as."
    return reason(error) if isinstance(error, OSError) else redact(error)


def problem(console: Console, finding: Finding) -> None:
    """Print a finding with what it means and what to do."""
    word = Text(f"{WORDS[finding.status]:<5}", style=STYLES[finding.status])
    paragraph(console, Text.assemble(word, ("what   ", "dim")), finding.what, style="bold")
    paragraph(console, Text("     means  ", style="dim"), finding.means)
    paragraph(console, Text("     fix    ", style="dim"), finding.fix, style="cyan")


def line(console: Console, finding: Finding) -> None:
    """Print a finding in one line, or as few as there is room for."""
    paragraph(console, Text(f"{WORDS[finding.status]:<5}", style=STYLES[finding.status]), finding.what)


def paragraph(console: Console, lead: Text, text: str, style: str = "") -> None:
    """Print text beside its lead. Words that are too long stay whole, so that paths and URLs can be copied."""
    width = max(20, console.width - len(lead))
    lines = textwrap.wrap(clean(text), width, break_long_words=False, break_on_hyphens=False) or [""]
    for number, part in enumerate(lines):
        beside = lead if number == 0 else Text(" " * len(lead))
        console.print(Text.assemble(beside, (part, style)), soft_wrap=True)


def progress_to_stderr() -> Callable[[str], None]:
    """Lines of progress with the seconds since the start; they never mix with what is on stdout."""
    console, begun = Terminal(stderr=True), time.monotonic()

    def tell(what: str) -> None:
        console.print(Text(f"{time.monotonic() - begun:5.1f} s  {what}", style="dim"))

    return tell


def one_size(size: int) -> str:
    """Bytes as people say them."""
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def age(seconds: float) -> str:
    """A span of time as people say it, in its two largest units at most."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def ask(
    question: str,
    *,
    as_json: bool,
    otherwise: str = "Nothing was changed.",
    show: Callable[[Console], None] = lambda _: None,
) -> None:
    """Ask the person at the terminal, after what `show` prints.

    Raises:
        UsageError: there is no terminal, or the answer is not yes; `otherwise` says what that means.
    """
    if as_json or not sys.stdin.isatty():
        raise UsageError(f"{question} Give --yes, since there is nobody to ask. {otherwise}")
    console = Console(stderr=True, highlight=False)
    show(console)
    console.print(Text(f"{question} [y/N] ", style="bold"), end="", soft_wrap=True)
    if input().strip().lower() not in ("y", "yes"):
        raise UsageError(otherwise)


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
