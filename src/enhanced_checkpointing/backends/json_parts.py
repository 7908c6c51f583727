"""Where the parts of a JSON value begin and end, so that each keeps the bytes that it has. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR = re.compile(rb"[^\s,\]}]+")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def json_entries(data: bytes, at: int) -> Iterator[tuple[str, slice]]:
    """The keys of the object that begins at `at`, each with the place of its value.

    Raises:
        ValueError: there is no object, or it ends too early.
    """
    for start in _members(data, at, b"{"):
        key = _STRING.match(data, start)
        colon = _skip(data, key.end()) if key else 0
        if key is None or data[colon : colon + 1] != b":":
            raise ValueError("a key that is no text")
        value_at = _skip(data, colon + 1)
        end = _end_of(data, value_at)
        yield json.loads(key[0]), slice(value_at, end)


def json_items(data: bytes) -> Iterator[slice]:
    """The places of the items of an array.

    Raises:
        ValueError: there is no array, or it ends too early.
    """
    return (slice(start, _end_of(data, start)) for start in _members(data, _skip(data, 0), b"["))


def _members(data: bytes, at: int, opening: bytes) -> Iterator[int]:
    """Where each member of an object or array begins."""
    at = _skip(data, at)
    closing = b"}" if opening == b"{" else b"]"
    if data[at : at + 1] != opening:
        raise ValueError("no JSON object or array where one should be")
    at = _skip(data, at + 1)
    if data[at : at + 1] == closing:
        return
    while True:
        yield at
        at = _skip(data, _end_of(data, at) if opening == b"[" else _end_of(data, _value_of(data, at)))
        if data[at : at + 1] == closing:
            return
        if data[at : at + 1] != b",":
            raise ValueError("JSON that ends too early")
        at = _skip(data, at + 1)


def _value_of(data: bytes, at: int) -> int:
    """Where the value of the member of an object begins."""
    key = _STRING.match(data, at)
    return _skip(data, _skip(data, key.end()) + 1) if key else len(data)


def _end_of(data: bytes, at: int) -> int:
    """Where the value that begins at `at` ends."""
    depth = 0
    while True:
        first = data[at : at + 1]
        if first == b'"':
            found = _STRING.match(data, at)
        elif first in (b"[", b"{", b"]", b"}", b",", b":"):
            found = None
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(first, 0)
            at += 1
        else:
            found = _SCALAR.match(data, at)
        if found is None and first not in (b"[", b"{", b"]", b"}", b",", b":"):
            raise ValueError("no JSON, or not all of it")
        at = found.end() if found is not None else at
        if depth <= 0:
            return at
        at = _skip(data, at)


def _skip(data: bytes, at: int) -> int:
    found = _SPACE.match(data, at)
    assert found is not None  # it matches nothing at all, too
    return found.end()
