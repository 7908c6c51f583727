"""How commands print, and end: one JSON object on stdout with `--json`, else text that is readable at 80 columns."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from enhanced_checkpointing.errors import LONGEST_TEXT, CheckpointerError, redact, shortened

CUT_OFF = 141
"""Exit code of what was to be written as bytes and lost its reader: 128 and SIGPIPE, as of any other tool."""

FULL = 2
"""Exit code when what was found could not be told."""


class Steady(io.TextIOWrapper):
    """A stream whose first failure is kept and not raised; from then on, what is written goes nowhere."""

    failure: OSError | None = None

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        """What is still in the buffer would fail once more when the process ends."""
        self.failure = self.failure or error
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.fileno())


def steady(stream: TextIO) -> TextIO:
    """The same stream, for as long as the process lives; None, which a closed one is, and a test's own stay."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    return Steady(
        stream.buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def flush_bytes() -> None:
    """Write what was given to `.buffer`.

    Raises:
        OSError: it cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.buffer.flush()


def ended(code: int) -> int:
    """The exit code after all is printed: the command's own where its reader went away, and `FULL`, after a sentence on
    stderr, where it could not be printed."""
    if sys.stdout is not None:
        sys.stdout.flush()
    failure: OSError | None = getattr(sys.stdout, "failure", None)
    if failure is None or isinstance(failure, BrokenPipeError):
        return code
    print(f"What is to be printed cannot be written: {failure.strerror}. It is not all there.", file=sys.stderr)
    return FULL


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, but for tab and line feed, and those that turn the direction of a text."""


def clean(text: str) -> str:
    """A text that a terminal shows and does not obey; once more, it stays as it is."""
    text = text.replace("\r\n", "\n")
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A text without breaks and runs of blanks."""
    return " ".join(clean(text).split())


class ExitCode(IntEnum):
    """What a script learns from every command; 130 is a command that was stopped by Ctrl-C, 141 an `export -` that was
    cut off by its reader."""

    FINE = 0
    WRONG = 1
    """The command found something wrong, or could not do all that was asked for."""
    UNKNOWN = 2
    """Wrong usage or configuration, or it could not be found out."""


class UsageError(Exception):
    """What was asked for cannot be done like this; the message says what to do. Ends a command with exit code 2."""


class RefusedError(Exception):
    """What was asked for was not done, or only in part; the message says why and what to do. Exit code 1."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Terminal(Console):
    """Where people read. Nothing is coloured by what it looks like, and no text makes the terminal do anything: ids of
    threads and errors of servers can hold anything.
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
    from enhanced_checkpointing.journal.disk import reason  # here, as it is needed where something is wrong only

    if isinstance(error, PermissionError):
        return f"{reason(error)}. Nothing was changed. Run this as the user that the application runs as."
    return reason(error) if isinstance(error, OSError) else redact(error)


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
        raise UsageError(f"{question} Give --yes: there is no terminal to ask at. {otherwise}")
    console = Console(stderr=True, highlight=False)
    show(console)
    console.print(Text(f"{question} [y/N] ", style="bold"), end="", soft_wrap=True)
    if input().strip().lower() not in ("y", "yes"):
        raise UsageError(otherwise)
