"""What the official SQLite saver lists. Its conditions are asked of SQLite itself, over metadata instead of a table:
what `json_extract` finds under a key, and what is equal to it, is told nowhere as exactly. Nothing is opened for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id
from langgraph.checkpoint.sqlite.utils import search_where

from enhanced_checkpointing.backends.selection import Metadata, Selection
from enhanced_checkpointing.backends.sqlite.rows import metadata_bytes


def selection(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What a listing takes.

    Raises:
        sqlite3.Error, TypeError, ValueError, KeyError, OverflowError: what the saver would raise.
    """
    where, values = search_where(None, cast("dict[str, Any] | None", filter), None)
    end = get_checkpoint_id(before) if before is not None else None
    most = None
    if limit is not None:
        _ask("SELECT 1 LIMIT ?", [limit])
        most = int(limit) if int(limit) >= 0 else None
    if where:
        _ask(f"SELECT 1 FROM (SELECT NULL AS metadata) {where} AND 0", values)

    def matches(metadata: Metadata) -> bool:
        return not where or _ask(f"SELECT 1 FROM (SELECT ? AS metadata) {where}", [metadata_bytes(metadata), *values])

    def below(checkpoint_id: str) -> bool:
        return before is None or (end is not None and checkpoint_id < end)

    return Selection(matches, below, most)


def _ask(text: str, values: Sequence[Any]) -> bool:
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(text, values).fetchone() is not None
