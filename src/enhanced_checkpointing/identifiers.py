"""What may be an id, and what one tells about the age of what it names. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from numbers import Integral
from typing import Any, cast

from langchain_core.runnables import RunnableConfig

from enhanced_checkpointing.errors import CheckpointerError, InvalidIdError, quoted

LONGEST_ID = 4096
"""Bytes of UTF-8. PostgreSQL's index takes at most 2,704 of a whole key that cannot be compressed."""

INTEGERS = range(-(2**63), 2**64)
"""What MessagePack can hold."""

USER_ID = "user_id"
"""The key of a config, and of a checkpoint's metadata, that names its user."""

GREGORIAN_TO_UNIX = 0x01B21DD213814000
"""Intervals of 100 ns between 1582-10-15 and 1970-01-01 (RFC 9562, section 5.1)."""

_IDS = "thread_id", "checkpoint_ns", "checkpoint_id", USER_ID
"""Those that a config names."""

OLD_SECONDS = 3600
"""Seconds: nothing that was made within an hour is deleted as old."""


def text_of(value: object, name: str) -> str:
    """The text that an id stands for: of a number or UUID its digits, of an enum's member that of its value.

    An empty text is an id like any other, as it is for LangGraph's savers.

    Raises:
        InvalidIdError: it is something else, or a text that some database would refuse or change.
    """
    if type(value) is str and value.isascii() and len(value) <= LONGEST_ID and "\0" not in value:
        return value  # nearly always, and every id of every call comes here
    text = value if type(value) is str else _as_text(value, name)
    size = len(text)
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise _refused(name, text, "contains half of a character (a surrogate)") from None
    if "\0" in text:
        raise _refused(name, text, "contains a NUL character")
    if size > LONGEST_ID:
        raise _refused(name, text, f"takes {size:,} bytes; at most {LONGEST_ID:,} are kept")
    return text


def _as_text(value: object, name: str) -> str:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return str.__str__(value)  # that of a subclass may say something else
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    kind = type(value).__name__
    raise InvalidIdError(
        f"{name} is of type {kind}. Nothing was read or written. Pass a text; a number, a UUID and an enum's member "
        "stand for theirs."
    )


def _refused(name: str, text: str, why: str) -> InvalidIdError:
    return InvalidIdError(
        f"{name} {why}: {quoted(text)}. No database keeps it as it is, so it might become another's id. Nothing was "
        "read or written. Pass a shorter text of whole characters without NUL."
    )


def named_thread(config: RunnableConfig) -> object:
    """The thread id of a config, as it was given.

    Raises:
        CheckpointerError: the config names no thread.
    """
    thread_id: object = config.get("configurable", {}).get("thread_id")
    if thread_id is None:
        raise CheckpointerError(
            "The config names no thread, so nothing was read or written. "
            "Pass config={'configurable': {'thread_id': '…'}}, or make one with manager.create_thread_config()."
        )
    return thread_id


def with_text_ids(config: RunnableConfig) -> RunnableConfig:
    """The same config with its ids as texts, which every backend stores alike. The namespace None is the root graph's.

    Raises:
        InvalidIdError: `text_of` refuses one of them.
        CheckpointerError: the config names no thread.
    """
    given = config.get("configurable", {})
    if given.get("thread_id") is None:
        named_thread(config)  # which says what is wrong
    changed = _as_texts(given)
    return config if changed is given else cast("RunnableConfig", {**config, "configurable": changed})


def before_with_text_id(before: RunnableConfig | None) -> RunnableConfig | None:
    """The same end of another page with its checkpoint's id as text.

    Raises:
        InvalidIdError: `text_of` refuses it.
    """
    given = before.get("configurable") if before else None
    if before is None or given is None:
        return before
    changed = _as_texts(given)
    return before if changed is given else cast("RunnableConfig", {**before, "configurable": changed})


def _as_texts(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """`given` itself, if its ids are texts already: nearly always."""
    changes: dict[str, Any] = {}
    for name in _IDS:
        value = given.get(name)
        if value is None or (type(value) is str and value.isascii() and len(value) <= LONGEST_ID and "\0" not in value):
            continue  # as `text_of` would find, which is not called for what is nearly always so
        if (text := text_of(value, name)) is not value and not _is_stored(name, value):
            changes[name] = text
    if given.get("checkpoint_ns", "") is None:
        changes["checkpoint_ns"] = ""
    return {**given, **changes} if changes else given


def _is_stored(name: str, value: object) -> bool:
    """Whether LangGraph stores this as it is: a number that names a user counts as its text."""
    return name == USER_ID and type(value) is int and value in INTEGERS


def with_text_user(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same metadata, with the user as text whom LangGraph would store otherwise than he is named.

    Raises:
        InvalidIdError: `text_of` refuses a text that names the user.
    """
    user = metadata.get(USER_ID)
    if user is not None and isinstance(user, (str, Enum, uuid.UUID)) and (text := text_of(user, USER_ID)) is not user:
        return {**metadata, USER_ID: text}
    return metadata


def is_old(checkpoint_id: str | None, now: float) -> bool:
    """Whether a checkpoint is so old that its thread may be deleted while a run goes on with it; to a minute."""
    if checkpoint_id is None:
        return False
    if checkpoint_id[14:15] == "6" and len(checkpoint_id) == 36:  # as LangGraph makes them: they sort by time
        return checkpoint_id < _v6_of(int(now) // 60 * 60 - OLD_SECONDS)
    made_at = created_at(checkpoint_id)
    return made_at is not None and now - made_at > OLD_SECONDS


@lru_cache(maxsize=2)
def _v6_of(seconds: int) -> str:
    """What the ids of this time begin with."""
    digits = f"{seconds * 10_000_000 + GREGORIAN_TO_UNIX:015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}"


def created_at(thread_id: str) -> float | None:
    """Unix time in seconds at which a UUIDv6 or UUIDv7 was made; None for any other id."""
    try:
        number = uuid.UUID(thread_id)
    except ValueError:
        return None
    if number.version == 7:
        return (number.int >> 80) / 1000
    if number.version == 6:
        high, middle, low = number.int >> 96, number.int >> 80 & 0xFFFF, number.int >> 64 & 0xFFF
        return ((high << 28 | middle << 12 | low) - GREGORIAN_TO_UNIX) / 10_000_000
    return None
