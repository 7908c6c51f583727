"""Which threads there are, and the end of one."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver

from enhanced_checkpointing.errors import CheckpointUnavailableError


async def list_threads(saver: BaseCheckpointSaver[str], wanted: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """The threads that have a checkpoint with the metadata `wanted`, newest first, at most `limit` of them.

    Each with its id and, of its newest such checkpoint, id, time and metadata. All checkpoints that match are read, so
    this is for tools, not for every request.

    Raises:
        CheckpointUnavailableError: in an outage, since only the primary knows all threads.
    """
    newest: dict[str, dict[str, Any]] = {}
    async for found in saver.alist(None, filter=wanted or None):
        configurable = found.config["configurable"]
        if configurable.get("checkpoint_ns"):
            continue
        thread_id = configurable["thread_id"]
        if thread_id not in newest or newest[thread_id]["checkpoint_id"] < found.checkpoint["id"]:
            newest[thread_id] = {
                "thread_id": thread_id,
                "checkpoint_id": found.checkpoint["id"],
                "updated_at": found.checkpoint["ts"],
                "metadata": dict(found.metadata),
            }
    return sorted(newest.values(), key=lambda thread: str(thread["checkpoint_id"]), reverse=True)[:limit]


async def delete_thread(saver: BaseCheckpointSaver[str], thread_id: str) -> bool:
    """Delete a thread, now or, in an outage, when the journal is drained; False if it is known to be empty."""
    config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    try:
        existed = await saver.aget_tuple(config) is not None
    except CheckpointUnavailableError:
        existed = True  # nobody can tell now, so the deletion is kept for when somebody can
    await saver.adelete_thread(thread_id)
    return existed
