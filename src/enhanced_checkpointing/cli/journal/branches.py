"""Branches of outages that were put aside: the sibling threads of `CHECKPOINT_ON_DIVERGENCE=quarantine`."""

from __future__ import annotations

from enhanced_checkpointing.cli.configuration import UsageError
from enhanced_checkpointing.cli.primary import opened_primary
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import redact
from enhanced_checkpointing.resilience.failures import CallFailed
from enhanced_checkpointing.upkeep.divergence import APART

__all__ = ["find_branches"]

PAGE = 1000
PAGE_SECONDS = 30.0


async def find_branches(config: CheckpointerConfig) -> list[str]:
    """The ids of all siblings in the primary, of which every thread is walked by its id: of a million, for a while.

    Raises:
        UsageError: the primary does not answer.
    """
    found: list[str] = []
    try:
        async with opened_primary(config) as primary:
            after: str | None = None
            while True:
                start = after
                page = await primary.ask("list", lambda: primary.backend.thread_ids(start, PAGE), PAGE_SECONDS)  # noqa: B023  # run at once
                found += [thread_id for thread_id in page if APART in thread_id]
                if len(page) < PAGE:
                    return found
                after = page[-1]
    except CallFailed as failed:
        reason = " ".join(redact(failed.error).split())
        raise UsageError(
            f"The threads cannot be listed: {reason}. `checkpointing doctor` looks for the cause."
        ) from None
