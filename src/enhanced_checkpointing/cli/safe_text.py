"""Text of somebody else's as a terminal may be given it: shown, and not obeyed. Pure."""

from __future__ import annotations

import re

__all__ = ["clean", "one_line"]

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, but for tab and line feed, and those that turn the direction of a text."""


def clean(text: str) -> str:
    """A text that a terminal shows and does not obey; once more, it stays as it is."""
    text = text.replace("\r\n", "\n")
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """A text without breaks and runs of blanks."""
    return " ".join(clean(text).split())
