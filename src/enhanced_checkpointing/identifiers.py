"""What an id tells about the age of what it names. Pure."""

from __future__ import annotations

import uuid
from functools import lru_cache

GREGORIAN_TO_UNIX = 0x01B21DD213814000
"""Intervals of 100 ns between 1582-10-15 and 1970-01-01 (RFC 9562, section 5.1)."""

OLD_SECONDS = 3600
"""What was made within an hour is not deleted as old by anybody in their senses."""


def is_old(checkpoint_id: str | None, now: float) -> bool:
    """Whether a checkpoint is so old that its thread may be deleted while somebody goes on with it; to a minute."""
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
