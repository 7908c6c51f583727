"""What a single setting may be, and what is said of one that it is not. Pure."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticCustomError


def misfit(fault: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{fault}. Fix: {fix}", {"fault": fault, "fix": fix})


def lower_case(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def no_uri_of_sqlite(value: str | Path) -> str | Path:
    if str(value).startswith("file:"):
        raise misfit("it is a URI of SQLite", "give the path in it, or ./file:… for a file with such a name")
    return value


def in_home(value: str | Path) -> str | Path:
    """A path that begins with `~`, as shells expand it; others as they were given."""
    if not str(value).startswith("~"):
        return value
    try:
        found = Path(value).expanduser()
    except RuntimeError:
        raise misfit("it begins with the name of a user without a home", "give the path in full") from None
    return str(found) if isinstance(value, str) else found


def not_a_url(value: str | Path) -> str | Path:
    if re.match(r"\s*[A-Za-z][\w+.-]+:/", str(value)):  # two characters at least: C:/ is a drive
        raise misfit("it is a URL", "give a path in the file system; the URL of a database belongs in DATABASE_URL")
    if "\0" in str(value):
        raise misfit("it contains a NUL character", "give a path in the file system")
    return value


def names_a_file(value: str | Path) -> str | Path:
    if not str(value).strip() or not Path(value).name:
        raise misfit("it names no file", "give the path of the SQLite file, for example checkpoints.sqlite")
    return value


def schema_name(value: str) -> str:
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", value) or value.startswith("pg_"):
        raise misfit(
            "it is not a schema name that works without quotes",
            "use 1 to 63 lower-case letters, digits and underscores, beginning with a letter or an underscore, not pg_",
        )
    return value


def bearer_token(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text:
        raise misfit(
            "it is not a token that is hard to guess and fits into a header",
            "use at least 16 letters, digits and signs without spaces, for example of `openssl rand -hex 32`; for no "
            "token at all remove the variable",
        )
    return value


def off_is_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"off", "none"} else value


def libpq_spelling(value: SecretStr) -> SecretStr:
    """Turn `postgres://` and SQLAlchemy's `postgresql+driver://` into `postgresql://`; leave other strings alone."""
    text = value.get_secret_value().strip()
    return SecretStr(re.sub(r"\Apostgres(?:ql)?(?:\+\w+)?://", "postgresql://", text, flags=re.IGNORECASE))


LEAST_KEY = 32
"""Characters of a key: what `openssl rand -hex 16` gives, 128 bits, is as much as a signature of the journal has."""


def long_enough(value: SecretStr) -> SecretStr:
    """Refuse a key that could be guessed."""
    if len(value.get_secret_value()) < LEAST_KEY:
        raise misfit(
            "it is too short for a key",
            f"give at least {LEAST_KEY} characters, such as openssl rand -hex 32; for no key remove the variable",
        )
    return value


LIBPQ_FAULTS = (
    ("invalid percent-encoded", "a '%' in it is not followed by two hexadecimal digits"),
    ("query parameter", "it has a parameter after '?' that PostgreSQL does not know (asyncpg's ssl is sslmode here)"),
    ("connection option", "it has an option that PostgreSQL does not know"),
    ('missing "="', "it is neither a postgresql:// URL nor host=… dbname=… pairs"),
)
POSTGRES_FIX = (
    "give postgresql://user:password@host:5432/database without quotes around it, and write special characters of "
    "the password as %XX ('@' is %40, '/' is %2F, '%' is %25, a space is %20)"
)


def connection_string_problem(connection_string: SecretStr | None) -> str | None:
    """Say what libpq would not accept, in our words: libpq's own quote parts of the string, passwords among them."""
    from psycopg import ProgrammingError  # imported here: only a PostgreSQL primary needs it
    from psycopg.conninfo import conninfo_to_dict

    text = connection_string.get_secret_value() if connection_string else ""
    if not text:
        return f"a PostgreSQL primary needs a connection string. Fix: {POSTGRES_FIX}"
    if "\0" in text:  # libpq would read the part before it and ignore the rest
        return f"it contains a NUL character. Fix: {POSTGRES_FIX}"
    try:
        parts = conninfo_to_dict(text)
    except (ProgrammingError, ValueError) as error:  # ValueError: characters that cannot be encoded
        known = (ours for theirs, ours in LIBPQ_FAULTS if theirs in str(error))
        return f"{next(known, 'PostgreSQL cannot read it')}. Fix: {POSTGRES_FIX}"
    # An unescaped '@' or '/' in a password moves part of it to where errors and logs would show it.
    moved = str(parts.get("host", ""))[1:] + str(parts.get("dbname", ""))  # a host "@name" is an abstract socket
    if "://" in text and "@" in moved:
        return f"its host or database contains '@', so the password ended too early. Fix: {POSTGRES_FIX}"
    if not all(port.isdecimal() or not port for port in str(parts.get("port", "")).split(",")):
        return f"its port is not a number, perhaps because the password ended too early. Fix: {POSTGRES_FIX}"
    return None
