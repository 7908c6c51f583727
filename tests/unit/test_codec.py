"""An operation as the body of a journal record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from enhanced_checkpointing.errors import CheckpointCorruptionError
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead
from enhanced_checkpointing.journal.codec import Description, decode, describe, encode
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from tests.support.author import Author
from tests.support.cipher import encrypting

VALUES: dict[str, Any] = {
    "text": "needle",
    "nothing": None,
    "number": 3,
    "share": 0.5,
    "flag": True,
    "list": ["needle", b"needle", {"deep": ("needle", 1)}],
    "bytes": b"needle",
}


def operations_with(serializer: SharingSerializer) -> list[Operation]:
    author = Author("thread", "child|ns", serializer)
    first = author.put(VALUES, bumped=["delta"])
    second = author.put({**VALUES, "number": 4})
    snapshot = author.put({"delta": _DeltaSnapshot(["needle"])})
    mark = replace(snapshot, annotated=("thread_status", "touched_at"))
    writes = author.writes(("text", "needle"), ("list", ["needle"]), ("bytes", b"needle"), task_path="~path")
    return [first, second, snapshot, mark, writes, DeleteThread("thread")]


@pytest.mark.parametrize("serializer", [SharingSerializer(), encrypting()], ids=["plain", "encrypting"])
@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("base_head", ["base", None, UNKNOWN])
def test_every_operation_is_read_back_ready_for_replay(
    serializer: SharingSerializer, which: int, base_head: BaseHead
) -> None:
    operation = operations_with(serializer)[which]
    body = encode(operation, base_head, serializer)
    assert decode("thread", body, serializer) == operation.replayable()
    namespace = None if isinstance(operation, DeleteThread) else operation.checkpoint_ns
    checkpoint_id = None if isinstance(operation, DeleteThread) else operation.checkpoint_id
    assert describe(body) == Description(operation.name, namespace, checkpoint_id, base_head)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), json_values, max_size=4), st.text(), st.text())
def test_any_values_are_read_back(values: dict[str, Any], checkpoint_ns: str, task_path: str) -> None:
    serializer = SharingSerializer()
    author = Author("thread", checkpoint_ns, serializer)
    put = author.put(values)
    assert decode("thread", encode(put, None, serializer), serializer) == put.replayable()
    writes = author.writes(*values.items(), task_path=task_path)
    assert decode("thread", encode(writes, None, serializer), serializer) == writes


def test_thread_of_an_operation_is_the_one_of_its_record() -> None:
    serializer = SharingSerializer()
    for operation in operations_with(serializer):
        assert decode("another", encode(operation, None, serializer), serializer).thread_id == "another"


def test_serializer_that_encrypts_encrypts_values_and_metadata() -> None:
    serializer = encrypting()
    author = Author("thread", "", serializer)
    put = author.put({"text": "needle", "list": ["needle"]})
    put.metadata["author"] = "needle"  # type: ignore[typeddict-unknown-key]
    writes = author.writes(("text", "needle"), ("list", ["needle"]))
    for operation in (put, writes):
        body = encode(operation, None, serializer)
        assert b"needle" not in body
        assert decode("thread", body, serializer) == operation.replayable()


def test_another_key_reads_nothing() -> None:
    for operation in operations_with(encrypting())[:5]:
        body = encode(operation, None, encrypting())
        with pytest.raises(CheckpointCorruptionError, match="the key is another one"):
            decode("thread", body, encrypting(b"another key"))
        assert describe(body).name == operation.name, "what is needed to find it is not a secret"


def test_deletion_needs_no_serializer() -> None:
    body = encode(DeleteThread("thread"), "base", encrypting())
    assert decode("thread", body, encrypting(b"another key")) == DeleteThread("thread")


def test_metadata_that_the_serializer_does_not_know_is_refused() -> None:
    class Refusing(SharingSerializer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = self

        def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
            raise TypeError(f"{type(obj)} is not known")

    put = Author().put({"n": 1})
    with pytest.raises(TypeError, match="is not known"):
        encode(put, None, Refusing())


def test_values_keep_the_bytes_that_the_application_made_once() -> None:
    serializer = SharingSerializer()
    put = Author("thread", "", serializer).put({"list": ["needle"]})
    decoded = decode("thread", encode(put, None, serializer), serializer)
    assert isinstance(decoded, Put)
    assert type(decoded.values["list"]) is Serialized
    assert decoded.values["list"] == put.values["list"]


def test_description_is_json_for_whoever_looks_at_a_file() -> None:
    body = encode(Author().put({"n": 1}), "base", SharingSerializer())
    start = body.index(b"{")
    described, _ = json.JSONDecoder().raw_decode(body[start:].decode(errors="replace"))
    assert described["name"] == "put"
    assert described["base"] == "base"


def test_integers_that_only_json_holds_are_read_back() -> None:
    serializer = SharingSerializer()
    put = Author("a").put({"n": 2**64, "m": -(10**30)})
    put = replace(put, metadata={**put.metadata, "n": [-(2**64)]})  # type: ignore[typeddict-unknown-key]
    found = decode("a", encode(put, None, serializer), serializer)
    assert isinstance(found, Put)
    assert (found.values, found.metadata) == (put.values, put.metadata)
