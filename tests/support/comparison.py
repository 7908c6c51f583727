"""Compares two dumps of the same deterministic run, in which ids, versions and times differ by nature."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

from langgraph.types import Interrupt

__all__ = ["KEYS", "Dump", "Row", "assert_equal_dumps", "normalise", "row_key"]

Row: TypeAlias = dict[str, Any]
Dump: TypeAlias = dict[str, list[Row]]
"""The tables `checkpoints`, `checkpoint_blobs` (not of SQLite) and `checkpoint_writes`, values decoded, rows sorted."""

KEYS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("thread_id", "checkpoint_ns", "checkpoint_id"),
    "checkpoint_blobs": ("thread_id", "checkpoint_ns", "channel", "version"),
    "checkpoint_writes": ("thread_id", "checkpoint_ns", "checkpoint_id", "task_path", "task_id", "idx"),
}

_NO_TASK = "00000000-0000-0000-0000-000000000000"  # writes that come from outside of any task
_VERSION = re.compile(r"\b0*(\d+)\.[0-9.e-]+")
_IDENTIFIER = re.compile(
    r"\b\d{32}\.[0-9.e-]+"  # the version of a channel, with a random tail
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # a checkpoint or a task
    r"|\b[0-9a-f]{32}\b"  # an interrupt
)


def row_key(table: str, row: Row) -> tuple[str, ...]:
    """What makes a row of `table` unique, in a form that sorts."""
    return tuple(f"{row[column]:06}" if column == "idx" else str(row[column]) for column in KEYS[table])


def normalise(dump: Dump) -> Dump:
    """Replace whatever differs between two runs of the same graph by names that are the same in both.

    Checkpoints and versions are numbered in their order; a task is called by its checkpoint and its path, and with it
    its namespaces and interrupts; the time of day goes.
    """
    names = _Names(dump)
    renamed = {table: [names.row(row) for row in rows] for table, rows in dump.items()}
    return {table: sorted(rows, key=partial(row_key, table)) for table, rows in renamed.items()}


def assert_equal_dumps(actual: Dump, twin: Dump) -> None:
    """Assert that both are dumps of the same history; the message names the first difference."""
    difference = next(_differences("", _by_key(normalise(actual)), _by_key(normalise(twin))), None)
    if difference is not None:
        counts = ", ".join(f"{len(actual.get(table, []))} and {len(rows)} {table}" for table, rows in twin.items())
        raise AssertionError(f"the dumps differ, first here: {difference}\nrows of actual and twin: {counts}")


class _Names:
    """A stable name for every identifier of a dump."""

    def __init__(self, dump: Dump) -> None:
        self._names: dict[str, str] = {_NO_TASK: _NO_TASK}
        for thread_id in sorted({row["thread_id"] for rows in dump.values() for row in rows}):
            own = {table: [row for row in rows if row["thread_id"] == thread_id] for table, rows in dump.items()}
            self._name_thread(thread_id, own)

    def row(self, row: Row) -> Row:
        """The row with all names in place and without the time of day."""
        plain: Row = self._plain(row)
        if isinstance(plain.get("checkpoint"), dict):
            del plain["checkpoint"]["ts"]
        return plain

    def _name_thread(self, thread_id: str, tables: Dump) -> None:
        namespaces: dict[str, Dump] = defaultdict(lambda: {table: [] for table in tables})
        for table, rows in tables.items():
            for row in rows:
                namespaces[row["checkpoint_ns"]][table].append(row)
        checkpoints = _checkpoint_ids(tables)
        # From the root down, as the namespace of a subgraph contains the id of a task of the graph around it.
        for depth in sorted({_depth(namespace) for namespace in namespaces}):
            level = [namespace for namespace in namespaces if _depth(namespace) == depth]
            self._name_tasks_without_writes({namespace: checkpoints[namespace] for namespace in level})
            for namespace in sorted(level, key=self._rename):
                place = f"{thread_id}/{self._rename(namespace)}"
                for number, checkpoint_id in enumerate(sorted(checkpoints[namespace])):
                    self._names.setdefault(checkpoint_id, f"<{place}/checkpoint-{number:04}>")
                self._name_tasks(namespaces[namespace].get("checkpoint_writes", []))
                self._name_versions(namespaces[namespace])

    def _name_tasks(self, writes: list[Row]) -> None:
        tasks = sorted({(row["checkpoint_id"], row["task_path"], row["task_id"]) for row in writes})
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for checkpoint_id, task_path, task_id in tasks:
            number = seen[checkpoint_id, task_path]
            self._names.setdefault(task_id, f"<task {task_path} #{number} of {self._rename(checkpoint_id)}>")
            seen[checkpoint_id, task_path] += task_id != _NO_TASK
        for row in sorted(writes, key=lambda row: (self._rename(row["task_id"]), row["idx"])):
            for number, found in enumerate(_interrupts(row["value"])):
                self._names.setdefault(found.id, f"<interrupt {number} of {self._rename(row['task_id'])}>")

    def _name_tasks_without_writes(self, checkpoints: dict[str, set[str]]) -> None:
        # Known only by their subgraph's namespace, as with durability="exit"; checkpoint ids tell who was first.
        for number, namespace in enumerate(sorted(checkpoints, key=lambda name: min(checkpoints[name], default=""))):
            node, _, task_id = self._rename(namespace).rpartition(":")
            if _IDENTIFIER.fullmatch(task_id):
                self._names.setdefault(task_id, f"<task {node} #{number} without writes>")

    def _name_versions(self, tables: Dump) -> None:
        versions: list[str] = []
        for row in sorted(tables["checkpoints"], key=lambda row: str(row["checkpoint_id"])):
            seen_by_nodes = sorted(row["checkpoint"]["versions_seen"].items())
            for channels in (row["checkpoint"]["channel_versions"], *(channels for _, channels in seen_by_nodes)):
                versions += [str(channels[channel]) for channel in sorted(channels)]
        versions += sorted(str(row["version"]) for row in tables.get("checkpoint_blobs", []))
        branches: dict[str, int] = defaultdict(int)  # two branches have versions of the same number
        for version in dict.fromkeys(versions):
            if _IDENTIFIER.fullmatch(version) and (numbered := _VERSION.fullmatch(version)):
                number = numbered[1]
                self._names.setdefault(version, f"<version-{number:0>4}.{branches[number]}>")
                branches[number] += 1

    def _rename(self, text: str) -> str:
        return _IDENTIFIER.sub(lambda found: self._names.get(found[0], found[0]), text)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._rename(value)
        if isinstance(value, dict):
            return {self._plain(key): self._plain(content) for key, content in value.items()}
        if (names := _attribute_names(value)) is not None:
            return {"type": type(value).__name__} | {name: self._plain(getattr(value, name)) for name in names}
        if isinstance(value, list | tuple):
            return [self._plain(content) for content in value]
        if isinstance(value, set | frozenset):
            return sorted((self._plain(content) for content in value), key=repr)
        if value is None or isinstance(value, bytes | bool | int | float):
            return value
        return {"type": type(value).__name__, "repr": self._rename(repr(value))}


def _attribute_names(value: Any) -> list[str] | None:
    """What a dataclass, a named tuple or one of LangGraph's slotted records consists of; None for any other value."""
    names = getattr(value, "__dataclass_fields__", None) or getattr(value, "_fields", None)
    names = names or getattr(value, "__slots__", None)
    return list(names) if names else None


def _depth(namespace: str) -> int:
    return namespace.count("|") + 1 if namespace else 0


def _checkpoint_ids(tables: Dump) -> dict[str, set[str]]:
    """Every checkpoint that a thread mentions, by namespace; their ids sort by the time they were made at."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in tables["checkpoints"]:
        found[row["checkpoint_ns"]] |= {row["checkpoint_id"], row["parent_checkpoint_id"]} - {None, ""}
        for namespace, checkpoint_id in row["metadata"].get("parents", {}).items():
            found[namespace].add(checkpoint_id)
    for row in tables.get("checkpoint_writes", []):
        found[row["checkpoint_ns"]].add(row["checkpoint_id"])
    return found


def _interrupts(value: Any) -> list[Interrupt]:
    return [entry for entry in value if isinstance(entry, Interrupt)] if isinstance(value, list | tuple) else []


def _by_key(dump: Dump) -> dict[str, dict[tuple[str, ...], Row]]:
    return {table: {row_key(table, row): row for row in rows} for table, rows in dump.items()}


def _differences(place: str, actual: Any, twin: Any) -> Iterator[str]:
    if isinstance(actual, dict) and isinstance(twin, dict):
        for key in sorted(actual.keys() | twin.keys(), key=str):
            if key not in actual:
                yield f"{place}[{key!r}] is missing; the twin has {twin[key]!r}"
            elif key not in twin:
                yield f"{place}[{key!r}] is too much: {actual[key]!r}"
            else:
                yield from _differences(f"{place}[{key!r}]", actual[key], twin[key])
    elif actual != twin:
        yield f"{place} is {actual!r}; the twin has {twin!r}"
