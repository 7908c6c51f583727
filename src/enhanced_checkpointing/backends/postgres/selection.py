"""What the official PostgreSQL saver lists (`metadata @> filter`, `checkpoint_id < before`, `LIMIT`). Pure.

The rules of `@>`: https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id
from psycopg import errors

from enhanced_checkpointing.backends.postgres.refusals import check_json
from enhanced_checkpointing.backends.postgres.rows import JSONB
from enhanced_checkpointing.backends.selection import Selection
from enhanced_checkpointing.errors import CheckpointUnavailableError

LARGEST_LIMIT = 2**63 - 1

_SORTS_ALIKE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Ids that every collation sorts as Python does."""


def selection(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What a listing takes.

    Raises:
        psycopg.DataError: PostgreSQL would refuse the filter or the limit.
        TypeError, ValueError, KeyError: it could not even be sent.
    """
    end = get_checkpoint_id(before) if before is not None else None
    most = None if limit is None else int(limit)
    wanted = None
    if filter:
        check_json(filter)
        wanted = JSONB.of(filter)
    if most is not None and most < 0:
        raise errors.InvalidRowCountInLimitClause("LIMIT must not be negative")
    if most is not None and most > LARGEST_LIMIT:
        raise errors.NumericValueOutOfRange("bigint out of range")

    def below(checkpoint_id: str) -> bool:
        if before is None or not end:  # nothing is less than NULL, or than no text
            return before is None
        if not (_SORTS_ALIKE.fullmatch(checkpoint_id) and _SORTS_ALIKE.fullmatch(end)):
            raise CheckpointUnavailableError("only the primary knows in which order it has such checkpoint ids")
        return checkpoint_id < end

    return Selection(lambda metadata: wanted is None or contains(metadata, wanted), below, most)


def contains(value: Any, wanted: Any) -> bool:
    """Whether JSON contains other JSON, both in the form in which JSONB gives them back."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(key in value and contains(value[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(value, list) and all(any(contains(item, one) for item in value) for one in wanted)
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return not isinstance(value, (dict, list)) and bool(value == wanted)
