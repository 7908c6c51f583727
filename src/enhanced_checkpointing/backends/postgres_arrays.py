"""Columns of values as PostgreSQL arrays in their binary form, which go into a statement as they are."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_HEAD = struct.Struct(">iiIii")
"""Dimensions, whether there are nulls, the type of the elements, their number, the index of the first."""
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)

TEXT, BYTEA, INTEGER = 25, 17, 23
"""Object identifiers of types, the same in every PostgreSQL (pg_type.dat)."""


def text_array(values: Sequence[bytes | None]) -> bytes:
    """Of texts in UTF-8, which must be the encoding of the connection."""
    return _array(TEXT, values)


def bytea_array(values: Sequence[bytes | None]) -> bytes:
    return _array(BYTEA, values)


def integer_array(values: Sequence[int]) -> bytes:
    return _array(INTEGER, [_LENGTH.pack(value) for value in values])


def _array(element: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_HEAD.pack(1, None in values, element, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)
