"""Rows and lines of an export, as an attacker with access to them would write them: whoever makes objects of what they
say makes a directory, and so is seen.

LangGraph's permissive default is the attacker's friend, and a serializer may permit still more: `PERMISSIVE`.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ormsgpack
import psycopg
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS

from enhanced_checkpointing.operations import Put
from enhanced_checkpointing.serialization import Serialized
from enhanced_checkpointing.threads.exchange_lines import FORMAT, line_of
from tests.support.backends import checkpoint_id, put

PERMISSIVE = JsonPlusSerializer(pickle_fallback=True, allowed_json_modules=True)
THREADS = ("key", "value", "write", "sent", "metadata", "json 1", "json 2", "pickle")
TAGGED = THREADS[-3:]
"""What is stored with another tag than LangGraph's serializer of today gives."""
MODULE = "planted_beside_the_rows"
EXTENSIONS = range(8)


class Trap:
    """Directories that something hostile makes when it is made into an object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "sprung"
        self.folder.mkdir()
        (folder / f"{MODULE}.py").write_text(f"import os\nos.mkdir({str(self.folder / 'imported')!r})\n")

    def sprung(self) -> set[str]:
        """What ran since this was asked last."""
        found = {*os.listdir(self.folder)}
        for name in found:
            (self.folder / name).rmdir()
        return found

    def extensions(self) -> list[ormsgpack.Ext]:
        """For every code that LangGraph's serializer has, one extension that makes its directory; and one that imports
        a module."""
        places = [str(self.folder / f"extension {code}") for code in EXTENSIONS]
        made: list[Any] = [
            ("os", "mkdir", places[0]),
            ("os", "mkdir", (places[1],)),
            ("os", "mkdir", _named(places[2])),
        ]
        made += [("shutil", "os", places[3], "mkdir"), ("os", "mkdir", _named(places[4]))]
        made += [("os", "mkdir", _named(places[5]), "model_validate_json")]
        made += [ormsgpack.Ext(0, _packed(("os", "mkdir", place))) for place in places[6:]]
        found = [ormsgpack.Ext(code, _packed(made[code])) for code in EXTENSIONS]
        return [*found, ormsgpack.Ext(0, _packed((MODULE, "Anything", 1)))]

    def packed(self) -> Serialized:
        return Serialized("msgpack", _packed(self.extensions()))

    def document(self, *versions: int) -> dict[str, Any]:
        """As LangChain writes objects (1), and as LangGraph's first releases did (2)."""
        return {
            f"lc {version}": {
                "lc": version,
                "type": "constructor",
                "id": ["os", "mkdir"],
                "args": [str(self.folder / f"json {version}")],
                "kwargs": {},
            }
            for version in versions or (1, 2)
        }

    def in_json(self, *versions: int) -> Serialized:
        return Serialized("json", json.dumps(self.document(*versions)).encode())

    def pickled(self) -> Serialized:
        return Serialized("pickle", pickle.dumps(_Made(str(self.folder / "pickle"))))


@dataclass
class _Made:
    """What is unpickled as a directory."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (self.path, 0o700, True)


def _named(path: str) -> dict[str, str]:
    return {"path": path}


def _packed(value: Any) -> bytes:
    return ormsgpack.packb(value, option=ormsgpack.OPT_NON_STR_KEYS)


Write = tuple[int, str, Serialized]
"""Of the checkpoint with this number, to this channel."""


def _value(thread: str, trap: Trap) -> Serialized:
    if thread.startswith("json"):
        return trap.in_json(int(thread[-1]))
    return trap.pickled() if thread == "pickle" else trap.packed()


def _writes(thread: str, trap: Trap) -> list[Write]:
    hostile = _value(thread, trap)
    if thread == "sent":
        return [(1, TASKS, hostile)]  # upon the parent: before version 4 these were the next checkpoint's
    if thread == "write" or thread in TAGGED:
        return [(2, channel, hostile) for channel in ("note", TASKS, "__interrupt__", "__error__")]
    return []


def _puts(thread: str, trap: Trap) -> Iterator[Put]:
    for number in (1, 2):
        metadata = trap.document() if thread == "metadata" else {}
        channels = ("note", "delta") if thread == "value" else ("note",)
        made = put(thread, number, parent=number - 1 or None, metadata=metadata, values=dict.fromkeys(channels, "calm"))
        if thread == "sent":
            made.skeleton = {**made.skeleton, "v": 3}
        yield made


def plant_in_sqlite(path: Path | str, trap: Trap) -> None:
    """Write the corpus into a file that has LangGraph's tables."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for thread in THREADS:
            for one in _puts(thread, trap):
                whole: dict[str, Any] = {**one.skeleton, "channel_values": dict(one.values)}
                stored = Serialized("msgpack", b"")
                if thread in ("key", "sent"):
                    whole["one more" if thread == "key" else "pending_sends"] = trap.extensions()
                elif thread == "value":
                    whole["channel_values"] |= {"note": trap.extensions(), "delta": trap.extensions()[7]}
                elif thread.startswith("json"):
                    found = trap.document(int(thread[-1]))
                    whole |= {"one more": found, "channel_values": {"note": found}}
                    stored = Serialized("json", json.dumps(whole).encode())
                elif thread == "pickle":
                    whole["channel_values"]["note"] = _Made(str(trap.folder / "pickle"))
                    stored = Serialized("pickle", pickle.dumps(whole))
                row = (thread, one.checkpoint_id, one.parent_checkpoint_id, stored.tag, stored.data or _packed(whole))
                connection.execute(
                    "INSERT INTO checkpoints VALUES (?, '', ?, ?, ?, ?, ?)", (*row, json.dumps(one.metadata))
                )
            for index, (number, channel, value) in enumerate(_writes(thread, trap)):
                connection.execute(
                    "INSERT INTO writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, value) "
                    "VALUES (?, '', ?, 'task', ?, ?, ?, ?)",
                    (thread, checkpoint_id(number), index, channel, value.tag, value.data),
                )


def plant_in_postgres(url: str, trap: Trap) -> None:
    """Write the corpus into a database that has LangGraph's tables."""
    with psycopg.connect(url) as session:
        for thread in THREADS:
            for one in _puts(thread, trap):
                whole: dict[str, Any] = {**one.skeleton, "channel_values": dict(one.values)}
                if thread == "key":
                    whole["one more"] = trap.document()
                if thread == "value" or thread in TAGGED:
                    delta = Serialized("msgpack", _packed(trap.extensions()[7]))
                    whole["channel_values"] = {}
                    values = {"note": _value(thread, trap)} | ({"delta": delta} if thread == "value" else {})
                    for channel, value in values.items():
                        session.execute(
                            "INSERT INTO checkpoint_blobs VALUES (%s, '', %s, %s, %s, %s)",
                            (thread, channel, one.new_versions[channel], value.tag, value.data),
                        )
                session.execute(
                    "INSERT INTO checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata) "
                    "VALUES (%s, %s, %s, %s, %s)",
                    (
                        thread,
                        one.checkpoint_id,
                        one.parent_checkpoint_id,
                        json.dumps(whole),
                        json.dumps(one.metadata),
                    ),
                )
            for index, (number, channel, value) in enumerate(_writes(thread, trap)):
                session.execute(
                    "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob) "
                    "VALUES (%s, %s, 'task', %s, %s, %s, %s)",
                    (thread, checkpoint_id(number), index, channel, value.tag, value.data),
                )


def hostile_export(trap: Trap) -> bytes:
    """An export with the corpus in everything that may stand as bytes in its lines, one thread for each."""
    lines = [line_of({"kind": "export", "format": FORMAT, "source": "elsewhere", "exported_at": "2026-01-01"})]
    forms = {"msgpack": trap.packed(), "json": trap.in_json(), "pickle": trap.pickled()}
    count = 0
    for form, value in forms.items():
        one = put("any", 1, values={"note": ""})
        plain = {"checkpoint": one.skeleton, "metadata": one.metadata, "values": {"note": _line_value(value)}}
        written = [["note", _line_value(value)], [TASKS, _line_value(value)]]
        places: dict[str, tuple[dict[str, Any], list[Any]]] = {"value": (plain, []), "write": (plain, written)}
        for name in ("checkpoint", "metadata"):
            document = {key: part for key, part in plain.items() if key != name}
            stored = _document(form, dict(plain[name]), trap)
            places[name] = ({**document, "values": {}, f"{name}_stored": _line_value(stored)}, [])
        for place, (content, writes) in places.items():
            thread, count = f"{place} in {form}", count + 1
            start = {"kind": "checkpoint", "namespace": "", "parent": None, **content}
            end = {"kind": "end of thread", "checkpoints": 1, "calls": len(writes[:1])}
            call = {"kind": "writes", "namespace": "", "checkpoint_id": one.checkpoint_id, "task_id": "task"}
            calls = [{**call, "task_path": "", "writes": writes}] if writes else []
            for number, line in enumerate([start, *calls, end], start=1):
                lines.append(line_of({"thread": thread, "line": number, **line}))
    return b"".join([*lines, line_of({"kind": "end of export", "threads": count})])


def _document(form: str, plain: dict[str, Any], trap: Trap) -> Serialized:
    """A checkpoint or its metadata with one more key that is hostile."""
    if form == "msgpack":
        return Serialized(form, _packed({**plain, "one more": trap.extensions()}))
    if form == "json":
        return Serialized(form, json.dumps({**plain, "one more": trap.document()}).encode())
    return Serialized(form, pickle.dumps({**plain, "one more": _Made(str(trap.folder / "pickle"))}))


def _line_value(value: Serialized) -> dict[str, str]:
    return {"type": value.tag, "data": base64.b64encode(value.data).decode()}
