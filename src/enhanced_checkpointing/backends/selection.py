"""What a listing of one thread takes, as the database would select it; without asking the database. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import get_checkpoint_id

from enhanced_checkpointing.errors import CheckpointUnavailableError

Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a thread's checkpoints, newest first: which ones, and how many."""

    matches: Callable[[Metadata], bool] = lambda _: True
    """Whether the metadata fits. Raises what the database says to this metadata with this filter."""
    below: Callable[[str], bool] = lambda _: True
    """Whether a checkpoint's id stands before the end of the other page."""
    limit: int | None = None
    """How many at most; None: all."""


EVERYTHING = Selection()


def plain(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What databases agree on: texts in metadata, a checkpoint before which it is listed, a number of checkpoints.

    Raises:
        CheckpointUnavailableError: only the database knows what else it selects.
    """
    end = get_checkpoint_id(before) if before else None
    is_simple = isinstance(filter, dict) and all(
        key.isidentifier() and isinstance(value, str) for key, value in filter.items()
    )
    if (filter and not is_simple) or (before is not None and not end) or not (limit is None or limit > 0):
        raise CheckpointUnavailableError("only the primary knows what it selects by this filter, limit or `before`")
    return by_equality(filter, before, limit)


def by_equality(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """As LangGraph's memory selects: what is equal for Python is equal, and None stands for what is missing."""
    end = get_checkpoint_id(before) if before else None

    def matches(metadata: Metadata) -> bool:
        return not filter or all(value == metadata.get(key) for key, value in filter.items())

    return Selection(matches, lambda checkpoint_id: not end or checkpoint_id < end, limit)
