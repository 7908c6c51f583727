"""What a thread id tells about the age of its thread. Pure."""

from __future__ import annotations

import uuid

GREGORIAN_TO_UNIX = 0x01B21DD213814000
"""Intervals of 100 ns between 1582-10-15 and 1970-01-01 (RFC 9562, section 5.1)."""


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
