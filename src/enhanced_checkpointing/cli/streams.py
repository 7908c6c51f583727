"""Standard output and error by which no command fails: whoever reads may go, and the disk behind them may be full.

What is printed for people and scripts tells of work that is done, so a command goes on without it and ends as what it
found says. The bytes of `export -` are the work itself: they go past this, through `.buffer`, and their failure counts.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

__all__ = ["CUT_OFF", "FULL", "Steady", "ended", "flush_bytes", "steady"]

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
