"""What PostgreSQL surely refuses of an operation, told without asking it, with the error that it would give. Pure."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import errors

from enhanced_checkpointing.backends.postgres.rows import documents
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, texts_of
from enhanced_checkpointing.serialization import Serialized

LONGEST_KEY = 2704
"""Bytes of an entry of an index; its text may be compressed before, if that pays."""
COMPRESSED_ABOVE = 500
BYTES_OF_A_CHARACTER = 4
"""At most, in UTF-8."""

_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def check(operation: Operation) -> None:
    """Return if PostgreSQL may take this operation.

    Raises:
        psycopg.DataError, psycopg.OperationalError: it would not.
        UnicodeEncodeError, TypeError, ValueError: it could not even be sent.
    """
    text = "".join(texts_of(operation))
    text.encode()
    if "\0" in text:
        raise errors.CharacterNotInRepertoire('invalid byte sequence for encoding "UTF8": 0x00')
    if not isinstance(operation, DeleteThread) and len(text) * BYTES_OF_A_CHARACTER > LONGEST_KEY:
        _check_keys(operation)
    if isinstance(operation, Put):
        for document in documents(operation):
            check_json(document)


def _check_keys(operation: Operation) -> None:
    for key in _keys(operation):
        encoded = [part.encode() for part in key]
        if sum(map(len, encoded)) > LONGEST_KEY and sum(map(_least_size, encoded)) > LONGEST_KEY:
            raise errors.ProgramLimitExceeded(f"index row size exceeds btree version 4 maximum {LONGEST_KEY}")


def _keys(operation: Operation) -> Iterable[Sequence[str]]:
    """What stands in the primary keys of the rows."""
    if isinstance(operation, Put):
        yield operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id
        for channel, version in operation.all_versions().items():
            if type(operation.values.get(channel)) is Serialized:
                yield operation.thread_id, operation.checkpoint_ns, channel, str(version)
    elif not isinstance(operation, DeleteThread):
        yield operation.thread_id, operation.checkpoint_ns, operation.checkpoint_id, operation.task_id


def _least_size(part: bytes) -> int:
    """No compression of PostgreSQL's is as strong as this one."""
    return min(len(part), len(zlib.compress(part, 9))) if len(part) > COMPRESSED_ABOVE else len(part)


def check_json(document: Mapping[str, Any]) -> None:
    """Return if PostgreSQL may take this as JSONB; else raise as `check` does."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        json.dumps(document)  # raises what has nothing to do with numbers
        raise errors.InvalidTextRepresentation("invalid input syntax for type json: NaN or Infinity") from error
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le") if not text.isascii() else None
    except UnicodeDecodeError as error:
        raise errors.InvalidTextRepresentation("invalid input syntax for type json: half of a character") from error
    if "\\u0000" in text and _ESCAPED_NUL.search(text):
        raise errors.UntranslatableCharacter("unsupported Unicode escape sequence: \\u0000 cannot be converted to text")
