"""What pruning a thread would take away, told without doing it: by the very plan that the backends carry out."""

from __future__ import annotations

from enhanced_checkpointing.backends.pruning import Held, Link, link_of, plan_pruning
from enhanced_checkpointing.cli.threads.database import Store
from enhanced_checkpointing.operations import checkpoint_id_of, namespace_of

__all__ = ["count_pruned"]

AT_ONCE = 50
"""Checkpoints that are read at once."""

OLD_FORMAT = 4
"""Checkpoints of an older format (`v`) may be read together with what was written on their parents."""


async def count_pruned(store: Store, thread_id: str, keep: int) -> int:
    """How many checkpoints would go, as the database is now."""
    thread: dict[str, list[Link]] = {}
    held: dict[tuple[str, str], tuple[frozenset[str], frozenset[str]]] = {}
    for namespace in await _namespaces(store, thread_id):
        place: str | None = None
        while True:
            page = await store.page(thread_id, namespace, place, AT_ONCE)
            for found in page:
                checkpoint = found.checkpoint
                parent_id = checkpoint_id_of(found.parent_config) if found.parent_config else None
                old = checkpoint["v"] < OLD_FORMAT
                link = link_of(checkpoint["id"], parent_id, found.metadata, needs_parent=old)
                thread.setdefault(namespace, []).append(link)
                names = frozenset(checkpoint["channel_versions"]), frozenset(checkpoint["channel_values"])
                held[namespace, checkpoint["id"]] = names
            if len(page) < AT_ONCE:
                break
            place = page[-1].checkpoint["id"]

    def held_by(namespace: str, checkpoint_id: str, channels: frozenset[str]) -> Held:
        known, valued = held[namespace, checkpoint_id]
        return Held(channels & known, channels & valued)

    return len(plan_pruning(thread, held_by, keep).dropped)


async def _namespaces(store: Store, thread_id: str) -> list[str]:
    """Every namespace of a thread: pages of it may end between checkpoints with the same id in several."""
    found: set[str] = set()
    place: str | None = None
    while True:
        page = await store.page(thread_id, None, place, AT_ONCE)
        found |= {namespace_of(one.config) for one in page}
        if len(page) < AT_ONCE:
            return sorted(found)
        place = page[-1].checkpoint["id"]
