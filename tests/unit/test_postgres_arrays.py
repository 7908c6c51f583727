"""Columns as PostgreSQL arrays, read back by psycopg's own loaders."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from psycopg.adapt import PyFormat, Transformer
from psycopg.postgres import types
from psycopg.pq import Format

from enhanced_checkpointing.backends.postgres.rows import bytea_array, integer_array, rows_of, text_array


def loaded(kind: str, array: bytes) -> Any:
    """What psycopg makes of the binary form of an array of this type."""
    return Transformer().get_loader(types[kind].array_oid, Format.BINARY).load(array)


@pytest.mark.parametrize(
    "texts",
    [
        [],
        ["one"],
        ["one", "two"],
        ["", "", ""],
        [None],
        [None, "between", None],
        ["Grüße", "日本", "🙂", '{"a": [1, NULL]}', "NULL", "with,comma", 'with"quote', "back\\slash", " "],
        ["x" * 100_000, "short"],
    ],
)
def test_texts_come_back_as_they_were(texts: Sequence[str | None]) -> None:
    assert loaded("text", text_array([text.encode() if text is not None else None for text in texts])) == texts


@pytest.mark.parametrize("values", [[], [b""], [b"\x00\xff", None, b""], [bytes(range(256)), b"\\x00"]])
def test_bytes_come_back_as_they_were(values: Sequence[bytes | None]) -> None:
    assert loaded("bytea", bytea_array(values)) == values


@pytest.mark.parametrize("values", [[], [0], [-1, -4, 3], [2**31 - 1, -(2**31)]])
def test_integers_come_back_as_they_were(values: Sequence[int]) -> None:
    assert loaded("int4", integer_array(values)) == values


@pytest.mark.parametrize(
    "rows",
    [
        [[b"one"]],
        [[b"channel", b"msgpack", b"\x00\xff" * 5000], [b"", None, b""], [None, None, None]],
        [[bytes([number, column]) for column in range(6)] for number in range(50)],
    ],
)
def test_rows_of_an_array_of_two_dimensions_are_those_that_were_put_into_it(rows: list[list[bytes | None]]) -> None:
    dumper = Transformer().get_dumper(rows, PyFormat.BINARY)
    array = dumper.dump(rows)
    assert array is not None
    assert rows_of(bytes(array)) == rows


@pytest.mark.parametrize("array", [None, struct.pack(">iii", 0, 0, types["bytea"].oid)])
def test_array_that_is_null_or_empty_has_no_rows(array: bytes | None) -> None:
    assert rows_of(array) == []


def test_arrays_say_of_what_they_are_and_whether_there_are_nulls() -> None:
    """The server refuses one that says something else, and psycopg's loaders do not look."""
    for array, element in ((text_array([b"a"]), "text"), (bytea_array([b"a"]), "bytea"), (integer_array([1]), "int4")):
        assert int.from_bytes(array[8:12], "big") == types[element].oid
        assert array[4:8] == bytes(4)
    assert text_array([b"a", None])[4:8] == b"\x00\x00\x00\x01"


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_integer_that_does_not_fit_is_an_error_of_the_caller(value: int) -> None:
    with pytest.raises(struct.error):
        integer_array([value])
