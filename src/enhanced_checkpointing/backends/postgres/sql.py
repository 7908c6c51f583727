"""What our writes say to PostgreSQL: the text of a statement on the official saver's tables. Pure: no I/O.

Of many rows each column is one array, so that one text does for any number of them. Of few rows each value is a
parameter of its own: the server has nothing to unfold and takes half the time, but every number of rows is a text of
its own, which has to be prepared on each connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count

TEXT, BYTEA, INTEGER, JSON = "text", "bytea", "integer", "jsonb"

WRITES_INTO = (
    "checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)"
)
WRITES_KINDS = (TEXT, TEXT, TEXT, TEXT, TEXT, INTEGER, TEXT, TEXT, BYTEA)
WRITES_KEY = "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx)"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one table: where they go, what kind each column is, and what becomes of a row that is there already."""

    into: str
    kinds: tuple[str, ...]
    conflict: str


PARTS = {
    "checkpoints": Part(
        "checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)",
        (TEXT, TEXT, TEXT, TEXT, JSON, JSON),
        "(thread_id, checkpoint_ns, checkpoint_id)"
        " DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata",
    ),
    "blobs": Part(
        "checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)",
        (TEXT, TEXT, TEXT, TEXT, TEXT, BYTEA),
        "(thread_id, checkpoint_ns, channel, version) DO NOTHING",
    ),
    "writes": Part(WRITES_INTO, WRITES_KINDS, f"{WRITES_KEY} DO NOTHING"),
    "special_writes": Part(
        WRITES_INTO,
        WRITES_KINDS,
        f"{WRITES_KEY} DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob",
    ),
}
"""The parts of a statement, in the order in which the server carries them out."""

DELETE_SQL = """
WITH blobs AS (DELETE FROM checkpoint_blobs WHERE thread_id = ANY($1::text[])),
     writes AS (DELETE FROM checkpoint_writes WHERE thread_id = ANY($1::text[]))
DELETE FROM checkpoints WHERE thread_id = ANY($1::text[])
"""


def carried(kind: str) -> str:
    """The type of the parameters in which values of a kind travel."""
    return TEXT if kind == JSON else kind


@cache
def arrays_sql(parts: tuple[str, ...]) -> str:
    """One statement of these parts, with an array as parameter for each column of each."""
    numbers = count(1)
    return _statement({name: _unfolded(PARTS[name], numbers) for name in parts})


@cache
def values_sql(shape: tuple[tuple[str, int], ...]) -> str:
    """One statement of these parts and so many rows of each, with a parameter for each value."""
    numbers = count(1)
    return _statement({name: _listed(PARTS[name], rows, numbers) for name, rows in shape})


def _unfolded(part: Part, numbers: Iterator[int]) -> str:
    arrays = ", ".join(f"${next(numbers)}::{carried(kind)}[]" for kind in part.kinds)
    names = [f"c{position}" for position, _ in enumerate(part.kinds)]
    values = ", ".join(
        f"{name}::{kind}" if kind == JSON else name for name, kind in zip(names, part.kinds, strict=True)
    )
    return f"SELECT {values} FROM unnest({arrays}) AS row ({', '.join(names)})"


def _listed(part: Part, rows: int, numbers: Iterator[int]) -> str:
    def row() -> str:
        values = (f"${next(numbers)}::{carried(kind)}" + ("::jsonb" if kind == JSON else "") for kind in part.kinds)
        return f"({', '.join(values)})"

    return f"VALUES {', '.join(row() for _ in range(rows))}"


def _statement(sources: Mapping[str, str]) -> str:
    """The first part is the main one, the others go along."""
    made = {
        name: f"INSERT INTO {PARTS[name].into} {source} ON CONFLICT {PARTS[name].conflict}"
        for name, source in sources.items()
    }
    (_, main), *others = made.items()
    along = ", ".join(f"{name}_part AS ({text})" for name, text in others)
    return f"WITH {along} {main}" if along else main
