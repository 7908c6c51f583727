"""Every error that this library raises of its own: one sentence per class, one way to keep secrets out of messages."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "CheckpointCorruptionError",
    "CheckpointNotFoundError",
    "CheckpointUnavailableError",
    "CheckpointerConfigurationError",
    "CheckpointerError",
    "InvalidIdError",
    "JournalFullError",
    "quoted",
    "redact",
    "shortened",
]


class CheckpointerError(Exception):
    """Base class of every error that this library raises of its own."""


class CheckpointUnavailableError(CheckpointerError):
    """The answer is not known now: neither the primary nor the warm copy can give it. It is never a "not found"."""


class CheckpointNotFoundError(CheckpointerError):
    """A thread or checkpoint that a call named does not exist, or not for the user for whom the call is made."""


class CheckpointCorruptionError(CheckpointerError):
    """Stored data was found damaged; it is reported and never read past silently."""


class CheckpointerConfigurationError(CheckpointerError):
    """A setting, credential, schema or privilege is wrong; waiting does not help, the message names the fix."""


class JournalFullError(CheckpointerError):
    """The journal reached its byte cap, so the write was not accepted: it is neither in the primary nor the journal."""


class InvalidIdError(CheckpointerError, ValueError):
    """An id is no text that every database keeps as it was given, so nothing was read or written."""


MOST_SHOWN = 80
"""Characters of an id in a message."""
LONGEST_TEXT = 8_000
"""Characters of what `redact` returns: a page, of an error that may quote all that was stored."""

# Users name threads, so their text is in here: each expression is tried at a literal, never at every letter.
_URL_PASSWORD = re.compile(r"://(?P<user>[^/@\s:]*):(?P<password>[^/\s]*)@")
_NAMED_SECRET = re.compile(
    r"(?P<name>(?:password|passwd|pwd|passfile|secret|token|api[-_]?key)['\"]?\s*[=:]\s*)"
    r"(?P<value>'(?:[^'\\]|\\.)*'|\"[^\"]*\"|(?:\\.|[^\s&])+)",
    re.IGNORECASE,
)


def redact(text: object, *secrets: str) -> str:
    """Return `text` with URL passwords, `password=…` pairs and the given `secrets` replaced by `***`.

    Of a database server's error only its main message and SQLSTATE are taken: its details quote what was stored. Of a
    text that is longer than `LONGEST_TEXT` the beginning and the end are returned.
    """
    redacted = _said(text)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        redacted = redacted.replace(secret, "***")
    redacted = _URL_PASSWORD.sub(r"://\g<user>:***@", redacted)
    return shortened(_NAMED_SECRET.sub(r"\g<name>***", redacted))


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of at most about `longest` characters: of a longer one its beginning and its end, and what is left out."""
    half = longest // 2
    if len(text) <= longest:
        return text
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    first = list(names)
    more = f" and {len(first) - most} more" if len(first) > most else ""
    return ", ".join(first[:most]) + more


def quoted(identifier: str) -> str:
    """An id as messages show it."""
    return repr(shortened(identifier, MOST_SHOWN))


def _said(text: object) -> str:
    """An error of psycopg is known by its `diag`, which is empty where no server spoke."""
    message = getattr(getattr(text, "diag", None), "message_primary", None)
    if not isinstance(text, BaseException) or not isinstance(message, str):
        return str(text)
    return f"{message} (SQLSTATE {getattr(text, 'sqlstate', None)})"
