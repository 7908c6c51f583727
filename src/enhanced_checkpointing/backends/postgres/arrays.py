"""PostgreSQL values in their binary form, as they go into a statement and come back."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

_HEAD = struct.Struct(">iiIii")
"""Dimensions, whether there are nulls, the type of the elements, their number, the index of the first."""
_DIMENSIONS = struct.Struct(">iii")
"""Dimensions, whether there are nulls, the type of the elements; for each dimension follow its length and begin."""
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
    return _array(INTEGER, [integer(value) for value in values])


def integer(value: int) -> bytes:
    return _LENGTH.pack(value)


def _array(element: int, values: Sequence[bytes | None]) -> bytes:
    parts = [_HEAD.pack(1, None in values, element, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def rows_of(array: bytes | None) -> list[list[bytes | None]]:
    """The rows of an array of two dimensions; without any, and for NULL, there are none."""
    if array is None or _DIMENSIONS.unpack_from(array)[0] == 0:
        return []
    (width,) = _LENGTH.unpack_from(array, _DIMENSIONS.size + 2 * _LENGTH.size)
    values: list[bytes | None] = []
    at = _DIMENSIONS.size + 4 * _LENGTH.size
    while at < len(array):
        (length,) = _LENGTH.unpack_from(array, at)
        at += _LENGTH.size
        if length < 0:
            values.append(None)
        else:
            values.append(array[at : at + length])
            at += length
    return [values[start : start + width] for start in range(0, len(values), width)]


def text_of(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def json_of(value: bytes | None) -> Any:
    """The binary form of jsonb is its text behind the number of its version."""
    return None if value is None else json.loads(value[1:])
