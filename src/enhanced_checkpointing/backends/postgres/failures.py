"""What an error of PostgreSQL means for the data, and what PostgreSQL surely refuses of an operation. Pure."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from enhanced_checkpointing.backends.postgres.rows import documents
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, texts_of
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.serialization import Serialized

FIX_IN_MESSAGE = "The message says what to do."


class LostSessionError(Exception):
    """A session on which a write was lost could not be ended yet, so a later write of its thread must wait."""


_BY_CODE = {
    "40001": FailureKind.TRANSIENT,  # serialization failure
    "40P01": FailureKind.TRANSIENT,  # deadlock
    "55P03": FailureKind.TRANSIENT,  # lock not available
    "57014": FailureKind.TRANSIENT,  # query cancelled, by a statement timeout or an administrator
    "25P02": FailureKind.TRANSIENT,  # in a failed transaction
    "25P03": FailureKind.TRANSIENT,  # idle-in-transaction timeout
    "57P05": FailureKind.TRANSIENT,  # idle-session timeout
    # This one session was terminated and rolled back; if the whole server goes down, the next try says so.
    "57P01": FailureKind.TRANSIENT,
    "57P02": FailureKind.UNKNOWN,  # another session crashed, the server resets all
    "40003": FailureKind.UNKNOWN,  # whether the statement was completed
    "55006": FailureKind.TRANSIENT,  # an object is in use, by an ALTER TABLE for one
    "25006": FailureKind.OUTAGE,  # read-only: a failover left us on the standby
    "57P03": FailureKind.OUTAGE,  # starting up, shutting down, in recovery
    "57P04": FailureKind.CONFIGURATION,  # the database was dropped
    "3D000": FailureKind.CONFIGURATION,  # no such database
    "3F000": FailureKind.CONFIGURATION,  # no such schema
    "26000": FailureKind.CONFIGURATION,  # prepared statement does not exist: a transaction pooler
    "XX001": FailureKind.CORRUPTION,
    "XX002": FailureKind.CORRUPTION,
}

_BY_CLASS = {
    "08": FailureKind.UNKNOWN,  # connection exception
    "0A": FailureKind.CONFIGURATION,  # not supported, with such tables
    "25": FailureKind.TRANSIENT,  # a transaction in a state in which this cannot be done
    "28": FailureKind.CONFIGURATION,  # authorization
    "40": FailureKind.TRANSIENT,  # rolled back by the server
    # Our statements are always the same: what is wrong with one is wrong with the tables, and for every thread. Were it
    # the data's fault, a drain would make dead letters of everything that waits.
    "42": FailureKind.CONFIGURATION,
    "53": FailureKind.OUTAGE,  # disk full, out of memory, too many connections
    "55": FailureKind.CONFIGURATION,  # a table that cannot be written as it is, such as a published one without a key
    "57": FailureKind.UNKNOWN,
    "58": FailureKind.OUTAGE,  # the server's own I/O
    "XX": FailureKind.UNKNOWN,
}
"""The rest (22 data, 23 constraints, 54 limits, P0 triggers, …) is at fault in itself: DATA."""

STALE_PLAN = "0A000"
"""Among others: a table has changed, and a statement that the session has prepared gives other columns now."""

# What one code says of tables and of values alike is told apart by where in the server it was said: messages are
# translated.
_SAID_IN = {
    ("0A000", "plancache.c"): FailureKind.TRANSIENT,
    ("0A000", "mbutils.c"): FailureKind.DATA,  # a text that the database's encoding lacks (SQL_ASCII, up to version 15)
    ("42501", "execMain.c"): FailureKind.DATA,  # a row that a policy forbids (row-level security)
}

_UNDEFINED = "42883"
_WITH_OUR_COLUMN = re.compile(r": (?:text|jsonb) \S+ (?!(?:text|jsonb)\b)")
"""An operator that does not exist: the column is of the type that it should be, the argument is not."""

_ALL_AS_MADE = (
    "The tables must be as CHECKPOINT_AUTO_SETUP=true makes them, with their primary keys. If they are being restored, "
    "this ends with the restore; else compare them with those of an empty database that was set up."
)

_FIXES = {
    "28": "Check the user and password in DATABASE_URL, and pg_hba.conf on the server.",
    "0A": _ALL_AS_MADE,
    "42": _ALL_AS_MADE,
    "55": _ALL_AS_MADE,
    "3D": "Create the database, or correct its name in DATABASE_URL.",
    "3F": "Create the schema, or correct CHECKPOINT_POSTGRES_SCHEMA.",
    "57": "Create the database again, or correct its name in DATABASE_URL.",
    "42P01": "Create the tables: run `checkpointing setup`, or start once with CHECKPOINT_AUTO_SETUP=true. If tables "
    "were dropped by hand, drop checkpoint_migrations too, so that all are made again.",
    "42703": "Migrate the tables: run `checkpointing setup`, or start once with CHECKPOINT_AUTO_SETUP=true.",
    "42501": "Grant the user of DATABASE_URL SELECT, INSERT, UPDATE and DELETE on the checkpoint tables (and CREATE on "
    "the schema for CHECKPOINT_AUTO_SETUP=true).",
    "42P05": "A transaction pooler is in between: set CHECKPOINT_POSTGRES_PREPARE_THRESHOLD=off.",
    "26000": "A transaction pooler is in between: set CHECKPOINT_POSTGRES_PREPARE_THRESHOLD=off.",
}

_REFUSED_FOR_GOOD = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "authentication failed",
    "does not exist",
    "is not permitted to log in",
    "permission denied for database",
    "certificate verify failed",
    "server does not support SSL",
    "no encryption",
    "root certificate file",
    "invalid connection option",
    ' value: "',  # as in: invalid sslmode value: "maybe"
    "unsupported startup parameter",
    "unrecognized configuration parameter",
    "no such user",
    "no such database",
)
_NEVER_CONNECTED = (
    "connection failed",
    "connection is bad",  # before anything was sent: a parameter that libpq refuses, a socket that is not there
    "failed to resolve host",
    "could not translate",
)


def classify_postgres(error: BaseException) -> Failure:
    """Say what an error of psycopg or of its pool means for the data."""
    if isinstance(error, (PoolTimeout, TooManyRequests)):
        return Failure(FailureKind.SATURATED, error)
    # A connect that took too long may have met an event loop that stood still. A server that does not answer shows in
    # the deadlines of the calls.
    if isinstance(error, (PoolClosed, LostSessionError, psycopg.errors.ConnectionTimeout)):
        return Failure(FailureKind.TRANSIENT, error)
    if isinstance(error, CheckpointerConfigurationError):
        return Failure(FailureKind.CONFIGURATION, error, answered=True, fix=FIX_IN_MESSAGE)
    if isinstance(error, psycopg.Error):
        code = error.sqlstate
        return _by_code(error, code) if code else _by_text(error)
    if isinstance(error, OSError):
        return Failure(FailureKind.OUTAGE, error)
    return Failure(FailureKind.DATA, error, answered=True)


def says_too_many(error: psycopg.Error) -> bool:
    """Whether a connection was refused because there are as many as there may be."""
    return any(
        sign in str(error) for sign in ("too many clients", "too many connections", "remaining connection slots")
    )


def _by_code(error: psycopg.Error, code: str) -> Failure:
    if code == STALE_PLAN and "cached plan" in str(error):
        return Failure(FailureKind.TRANSIENT, error, answered=True)
    said_in = _SAID_IN.get((code, error.diag.source_file or ""))
    if said_in is None and code == _UNDEFINED and _WITH_OUR_COLUMN.search(str(error)):
        said_in = FailureKind.DATA
    kind = said_in or _BY_CODE.get(code) or _BY_CLASS.get(code[:2], FailureKind.DATA)
    fix = _FIXES.get(code) or _FIXES.get(code[:2], "") if kind is FailureKind.CONFIGURATION else ""
    return Failure(kind, error, answered=True, fix=fix)


def _by_text(error: psycopg.Error) -> Failure:
    text = str(error)
    if isinstance(error, psycopg.OperationalError):
        if text.startswith(_NEVER_CONNECTED):
            if any(sign in text for sign in _REFUSED_FOR_GOOD) and "Connection refused" not in text:
                fix = "Check host, user, password, database name and sslmode in DATABASE_URL, and pg_hba.conf."
                return Failure(FailureKind.CONFIGURATION, error, answered=True, fix=fix)
            return Failure(FailureKind.OUTAGE, error, answered="FATAL" in text)
        return Failure(FailureKind.UNKNOWN, error)  # a connection that was lost on the way
    if isinstance(error, psycopg.InterfaceError):
        return Failure(FailureKind.UNKNOWN, error)
    return Failure(FailureKind.DATA, error, answered=True)


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
