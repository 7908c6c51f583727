"""Operations as statements: which there are, in which order, and the rows that they carry."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from psycopg.adapt import Transformer
from psycopg.postgres import types
from psycopg.pq import Format

from enhanced_checkpointing.backends.postgres.rows import (
    APART,
    DELETE_SQL,
    FEW_ROWS,
    PARTS,
    arrays_sql,
    carried,
    probe_statement,
    statements,
    values_sql,
)
from enhanced_checkpointing.backends.postgres.wire import Statement
from enhanced_checkpointing.operations import DeleteThread, Operation, Put
from enhanced_checkpointing.serialization import Serialized
from tests.support.author import Author

COLUMNS = {
    "checkpoints": ("thread_id", "checkpoint_ns", "checkpoint_id", "parent", "checkpoint", "metadata"),
    "blobs": ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob"),
    "writes": (
        *("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path"),
        *("idx", "channel", "type", "blob"),
    ),
}
COLUMNS["special_writes"] = COLUMNS["writes"]
PUT_ALONE = arrays_sql(("checkpoints",))


def together(*operations: Operation) -> list[Statement]:
    """The statements of arrays that many operations become, however few these are."""
    return statements(operations, apart=0)


def values_of(array: bytes | None, kind: str) -> list[Any]:
    """The elements of one of our arrays, as psycopg reads them; it must say of itself that it is of that kind."""
    assert array is not None
    assert int.from_bytes(array[8:12], "big") == types[kind].oid
    values: list[Any] = Transformer().get_loader(types[kind].array_oid, Format.BINARY).load(array)
    return values


def value_of(value: bytes | None, kind: str) -> Any:
    return None if value is None else Transformer().get_loader(types[kind].oid, Format.BINARY).load(value)


def rows_in(statement: Statement) -> dict[str, list[dict[str, Any]]]:
    """The rows of one statement by its parts, the main part first, whatever its form."""
    text, parameters = statement
    counted = re.findall(r"INSERT INTO \w+ \([^)]*\) VALUES ([^A-Z]*)", text)
    every = [parts for count in range(1, 5) for parts in permutations(PARTS, count)]
    found: dict[str, list[dict[str, Any]]] = {}
    values = iter(parameters)
    if counted:
        numbers = [listed.count("(") for listed in (*counted[-1:], *counted[:-1])]  # the main part stands last
        shapes = (tuple(zip(parts, numbers, strict=True)) for parts in every if len(parts) == len(numbers))
        for part, number in next(shape for shape in shapes if values_sql(shape) == text):
            rows = ([value_of(next(values), carried(kind)) for kind in PARTS[part].kinds] for _ in range(number))
            found[part] = [dict(zip(COLUMNS[part], row, strict=True)) for row in rows]
    else:
        for part in next(parts for parts in every if arrays_sql(parts) == text):
            columns = zip(*(values_of(next(values), carried(kind)) for kind in PARTS[part].kinds), strict=True)
            found[part] = [dict(zip(COLUMNS[part], row, strict=True)) for row in columns]
    assert not [*values]
    return found


def rows_of(*operations: Operation) -> dict[str, list[dict[str, Any]]]:
    """The rows of operations that are one statement."""
    (statement,) = together(*operations)
    return rows_in(statement)


def of(rows: Sequence[dict[str, Any]], *names: str) -> list[Any]:
    return [row[names[0]] if len(names) == 1 else tuple(row[name] for name in names) for row in rows]


def body(put: Put) -> dict[str, Any]:
    (row,) = rows_of(put)["checkpoints"]
    checkpoint: dict[str, Any] = json.loads(row["checkpoint"])
    return checkpoint


def frozen(put: Put, channel: str) -> Serialized:
    value = put.values[channel]
    assert isinstance(value, Serialized)
    return value


# One put


def test_put_stores_new_blobs_and_the_checkpoint_in_one_statement() -> None:
    author = Author("thread", "ns")
    author.put({"profile": ["Ada"], "n": 1})
    put = author.put({"profile": ["Ada"], "log": ["a"], "n": 2})
    log = frozen(put, "log")
    rows = rows_of(put)
    assert rows["blobs"] == [
        {
            "thread_id": "thread",
            "checkpoint_ns": "ns",
            "channel": "log",
            "version": put.new_versions["log"],
            "type": log.tag,
            "blob": log.data,
        }
    ]
    (checkpoint,) = rows["checkpoints"]
    assert (checkpoint["thread_id"], checkpoint["checkpoint_ns"]) == ("thread", "ns")
    assert (checkpoint["checkpoint_id"], checkpoint["parent"]) == (put.checkpoint_id, put.parent_checkpoint_id)
    assert body(put)["channel_values"] == {"n": 2}
    assert body(put)["channel_versions"] == put.skeleton["channel_versions"]
    assert body(put)["id"] == put.checkpoint_id


def test_replayed_put_stores_the_blobs_of_all_channels() -> None:
    author = Author()
    author.put({"profile": ["Ada"]})
    put = author.put({"profile": ["Ada"], "log": ["a"]}).replayable()
    assert sorted(of(rows_of(put)["blobs"], "channel")) == ["log", "profile"]


def test_root_has_no_parent() -> None:
    assert of(rows_of(Author().put({"n": 1}))["checkpoints"], "parent") == [None]


@pytest.mark.parametrize("value", ["text", 7, 2.5, True, None, "Grüße 🙂"])
def test_small_values_are_inline_and_have_no_blob(value: object) -> None:
    put = Author().put({"value": value})
    ((text, _),) = together(put)
    assert text == PUT_ALONE
    assert body(put)["channel_values"] == {"value": value}


def test_snapshot_of_a_delta_channel_is_a_blob_with_a_mark_in_the_checkpoint() -> None:
    put = Author().put({"log": _DeltaSnapshot(["a"]), "flag": True})
    assert body(put)["channel_values"] == {"log": True, "flag": True}
    assert of(rows_of(put)["blobs"], "channel", "blob") == [("log", frozen(put, "log").data)]


def test_delta_channel_without_a_value_has_a_version_and_nothing_else() -> None:
    put = Author().put({"n": 1}, bumped=["log"])
    assert list(rows_of(put)) == ["checkpoints"]
    assert body(put)["channel_values"] == {"n": 1}
    assert set(body(put)["channel_versions"]) == {"n", "log"}


def test_version_of_a_blob_is_text_whatever_it_was() -> None:
    put = replace(Author().put({"log": ["a"]}), new_versions={"log": 7})
    assert of(rows_of(put)["blobs"], "version") == ["7"]


def test_metadata_is_stored_without_the_writes_that_old_versions_kept_there() -> None:
    put = Author().put({"n": 1})
    put = replace(put, metadata={**put.metadata, "writes": {"node": object()}})  # type: ignore[typeddict-unknown-key]
    (row,) = rows_of(put)["checkpoints"]
    assert json.loads(row["metadata"]) == {"source": "loop", "step": 1}


def test_operation_is_not_changed_by_being_made_into_a_statement() -> None:
    put = Author().put({"log": _DeltaSnapshot(["a"]), "n": 1})
    before = (dict(put.values), dict(put.skeleton), dict(put.metadata))
    together(put, put)
    assert (dict(put.values), dict(put.skeleton), dict(put.metadata)) == before
    assert "channel_values" not in put.skeleton


# The writes of one task


def author_of_one(thread_id: str = "thread", checkpoint_ns: str = "") -> Author:
    author = Author(thread_id, checkpoint_ns)
    author.put({"n": 1})
    return author


def test_ordinary_writes_keep_what_is_there_and_are_numbered_in_their_order() -> None:
    author = author_of_one("thread", "ns")
    writes = author.writes(("n", 2), ("log", ["a"]), task_id="task", task_path="~1")
    rows = rows_of(writes)
    assert list(rows) == ["writes"]
    key = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
    assert of(rows["writes"], *key) == [("thread", "ns", author.head, "task", "~1")] * 2
    assert of(rows["writes"], "idx", "channel") == [(0, "n"), (1, "log")]
    assert of(rows["writes"], "type", "blob") == [(value.tag, value.data) for _, value in writes.writes]
    ((text, _),) = together(writes)
    assert text.split("ON CONFLICT")[1].endswith("DO NOTHING")


def test_special_writes_replace_what_is_there_at_places_of_their_own() -> None:
    writes = author_of_one().writes(("__error__", "oops"), ("__interrupt__", "why"))
    rows = rows_of(writes)
    assert list(rows) == ["special_writes"]
    assert of(rows["special_writes"], "idx") == [-1, -3]
    ((text, _),) = together(writes)
    assert re.search(r"DO UPDATE SET channel = EXCLUDED.channel, type = EXCLUDED.type, blob = EXCLUDED.blob", text)


def test_special_write_among_ordinary_ones_replaces_nothing() -> None:
    rows = rows_of(author_of_one().writes(("n", 2), ("__error__", "oops")))
    assert list(rows) == ["writes"]
    assert of(rows["writes"], "idx") == [0, -1]


@pytest.mark.parametrize(("ordinary", "kept"), [((), ["b"]), ((("n", 2),), ["n", "a"])])
def test_of_two_writes_of_a_special_channel_one_stays_as_one_statement_after_the_other_would_have_it(
    ordinary: tuple[tuple[str, Any], ...], kept: list[str]
) -> None:
    """The last if all are special, else the first; one statement may not meet the same row twice."""
    author = author_of_one()
    writes = author.writes(*ordinary, ("__error__", "a"), ("__error__", "b"))
    data = {value.data: "n" if channel == "n" else author.serializer.thaw(value) for channel, value in writes.writes}
    ((_, rows),) = rows_of(writes).items()
    assert [data[blob] for blob in of(rows, "blob")] == kept
    assert len(set(of(rows, "idx"))) == len(rows)


# Nothing


def test_nothing_is_no_statement() -> None:
    author = author_of_one()
    for apart in (0, APART):
        assert statements([], apart=apart) == []
        assert statements([author.writes()], apart=apart) == []
        assert statements([author.writes(), author.writes()], apart=apart) == []


def test_writes_without_a_value_do_not_split_what_is_beside_them() -> None:
    author = author_of_one("a")
    rows = rows_of(author.writes(), author.put({"n": 2}), author.writes())
    assert list(rows) == ["checkpoints"]


# Many operations


def test_operations_of_several_threads_are_one_statement_sorted_by_thread() -> None:
    """In the same order in every process, so that no two wait for each other's rows."""
    authors = {name: Author(name) for name in "cab"}
    puts = {name: author.put({"log": [name], "n": 1}) for name, author in authors.items()}
    operations: list[Operation] = [*puts.values()]
    operations += [authors[name].writes(("n", [name]), task_id=f"{name}2") for name in "bac"]
    operations += [authors[name].writes(("__error__", name), task_id=f"{name}3") for name in "acb"]
    rows = rows_of(*operations)
    assert sorted(rows) == ["blobs", "checkpoints", "special_writes", "writes"]
    for part in rows.values():
        assert of(part, "thread_id") == ["a", "b", "c"]
    assert of(rows["checkpoints"], "checkpoint_id") == [puts[name].checkpoint_id for name in "abc"]
    assert of(rows["blobs"], "blob") == [frozen(puts[name], "log").data for name in "abc"]
    assert of(rows["writes"], "task_id") == ["a2", "b2", "c2"]
    assert of(rows["special_writes"], "task_id") == ["a3", "b3", "c3"]


def test_puts_of_one_thread_are_in_the_order_in_which_they_came() -> None:
    author = Author("a")
    puts = [author.put({"log": [step]}) for step in range(3)]
    rows = rows_of(*puts)
    assert of(rows["checkpoints"], "checkpoint_id") == [put.checkpoint_id for put in puts]
    assert of(rows["blobs"], "version") == [put.new_versions["log"] for put in puts]


def test_put_that_comes_twice_is_two_statements() -> None:
    """Each is tried, as one after the other would be: what the database refuses of the first is not hidden."""
    author = Author("a")
    first, between = author.put({"n": 1}), author.writes(("n", [2]))
    second = replace(first, parent_checkpoint_id="another", values={"n": 2})
    other = replace(first, checkpoint_ns="other")
    made = together(first, between, other, second, replace(second, values={"n": 3}))
    assert len(made) == 3
    assert [rows_of(*piece) for piece in ([first, between, other], [second])] == [rows_in(each) for each in made[:2]]


def test_same_ids_in_other_threads_and_namespaces_are_other_rows() -> None:
    put = Author("a", "ns").put({"log": ["x"]})
    others = [put, replace(put, thread_id="b"), replace(put, checkpoint_ns="other")]
    rows = rows_of(*others)
    assert of(rows["checkpoints"], "thread_id", "checkpoint_ns") == [("a", "ns"), ("a", "other"), ("b", "ns")]
    assert of(rows["blobs"], "thread_id", "checkpoint_ns") == [("a", "ns"), ("a", "other"), ("b", "ns")]


def test_of_two_blobs_of_one_version_the_first_stays() -> None:
    first, second = Author("a").put({"log": ["first"]}), Author("a").put({"log": ["second"]})
    assert of(rows_of(first, second)["blobs"], "blob") == [frozen(first, "log").data]


def test_of_two_ordinary_writes_to_one_place_the_first_stays() -> None:
    author = author_of_one("a")
    first, second = author.writes(("n", ["first"]), task_path="~1"), author.writes(("n", ["second"]), task_path="~2")
    (row,) = rows_of(first, second)["writes"]
    assert (row["blob"], row["task_path"]) == (first.writes[0][1].data, "~1")


def test_of_two_special_writes_to_one_place_the_last_stays_under_the_path_of_the_first() -> None:
    author = author_of_one("a")
    first, second = (author.writes(("__error__", [name]), task_path=name) for name in ("one", "two"))
    (row,) = rows_of(first, second)["special_writes"]
    assert (row["blob"], row["task_path"]) == (second.writes[0][1].data, "one")


@pytest.mark.parametrize("special_first", [False, True])
def test_special_write_beats_the_same_one_among_ordinary_ones_whichever_came_first(special_first: bool) -> None:
    """The row is that of the first, as a conflict does not change its path; the value is the special one."""
    author = author_of_one("a")
    mixed = author.writes(("n", ["m"]), ("__error__", ["mixed"]), task_path="mixed")
    special = author.writes(("__error__", ["special"]), task_path="special")
    rows = rows_of(special, mixed) if special_first else rows_of(mixed, special)
    assert of(rows["writes"], "idx") == [0]
    (row,) = rows["special_writes"]
    assert row["blob"] == special.writes[0][1].data
    assert row["task_path"] == ("special" if special_first else "mixed")


def test_ordinary_writes_alone_are_the_main_part_and_special_ones_go_along() -> None:
    author = author_of_one("a")
    ((text, _),) = together(author.writes(("n", 1)), author.writes(("__error__", "x"), task_id="other"))
    assert text.startswith("WITH special_writes_part AS (")
    assert text == arrays_sql(("writes", "special_writes"))


# Few operations


def test_few_operations_are_a_statement_each_with_the_rows_that_they_have_alone() -> None:
    a, b = Author("a", "ns"), Author("b")
    operations: list[Operation] = [
        b.put({"log": ["b"], "n": 1}),
        a.put({"log": ["a"], "snapshot": _DeltaSnapshot([1]), "text": "inline"}),
        a.writes(("log", ["x"]), ("__interrupt__", "y"), task_path="~path"),
        a.writes(("__error__", "z"), task_id="other"),
        a.put({"n": 2}),
    ]
    made = statements(operations)
    in_order = [operations[place] for place in (1, 2, 3, 4, 0)]
    assert [rows_in(statement) for statement in made] == [rows_of(operation) for operation in in_order]
    assert all("VALUES" in text and "unnest" not in text for text, _ in made)


def test_few_operations_keep_the_order_of_their_thread_deletions_among_them() -> None:
    author = Author("a")
    put, after = author.put({"n": 1}), author.put({"n": 2})
    first, deletion, last = statements([put, DeleteThread("a"), after])
    assert deletion == together(DeleteThread("a"))[0]
    assert [rows_in(first), rows_in(last)] == [rows_of(put), rows_of(after)]


def test_writes_without_a_value_are_left_out_among_few() -> None:
    author = author_of_one("a")
    put = author.put({"n": 2})
    assert statements([author.writes(), put, author.writes()]) == statements([put])


def test_more_operations_than_few_are_one_statement() -> None:
    authors = [Author(f"thread-{number}") for number in range(APART + 1)]
    puts = [author.put({"log": ["a"]}) for author in authors]
    assert len(statements(puts[:-1])) == APART
    assert statements(puts) == together(*puts)


def test_operation_of_many_rows_is_a_statement_of_arrays_so_that_the_texts_stay_few() -> None:
    author = author_of_one("a")
    few = author.writes(*((f"channel-{number}", number) for number in range(FEW_ROWS)))
    many = author.writes(*((f"channel-{number}", number) for number in range(FEW_ROWS + 1)))
    assert statements([few]) != together(few)
    assert [rows_in(each) for each in statements([few])] == [rows_in(each) for each in together(few)]
    assert statements([many]) == together(many)


def test_values_are_numbered_in_the_order_of_the_parts_and_carry_their_types() -> None:
    text = values_sql((("checkpoints", 1), ("blobs", 2)))
    found = re.findall(r"\$(\d+)::(\w+)", text)
    kinds = [*PARTS["checkpoints"].kinds, *PARTS["blobs"].kinds, *PARTS["blobs"].kinds]
    assert [kind for _, kind in sorted(found, key=lambda each: int(each[0]))] == [*map(carried, kinds)]
    assert text.index("blobs_part AS (") < text.index("$1::")


# Deletions


def test_deletion_is_one_statement_for_all_tables() -> None:
    ((text, arrays),) = together(DeleteThread("thread"))
    assert text == DELETE_SQL
    assert [values_of(array, "text") for array in arrays] == [["thread"]]


def test_deletions_of_several_threads_are_one_statement_in_the_order_of_their_ids() -> None:
    ((text, arrays),) = together(*(DeleteThread(name) for name in ("b", "ü", "a")))
    assert text == DELETE_SQL
    assert [values_of(array, "text") for array in arrays] == [["a", "b", "ü"]]


def test_deletion_keeps_its_place_among_the_operations_of_its_thread() -> None:
    a, b = Author("a"), Author("b")
    before, other = a.put({"n": 1}), b.put({"n": 1})
    after, late = a.put({"n": 2}), a.writes(("n", 3))
    first, deletion, rest = together(before, other, DeleteThread("a"), after, late)
    assert of(rows_in(first)["checkpoints"], "checkpoint_id") == [before.checkpoint_id]
    assert (deletion[0], values_of(deletion[1][0], "text")) == (DELETE_SQL, ["a"])
    rows = rows_in(rest)
    assert of(rows["checkpoints"], "checkpoint_id") == [after.checkpoint_id, other.checkpoint_id]
    assert of(rows["writes"], "checkpoint_id") == [after.checkpoint_id]


def test_deletion_that_comes_last_is_carried_out_last() -> None:
    put = Author("a").put({"n": 1})
    assert [text for text, _ in together(put, DeleteThread("a"))] == [PUT_ALONE, DELETE_SQL]
    assert [text for text, _ in together(DeleteThread("a"), put)] == [DELETE_SQL, PUT_ALONE]


@pytest.mark.parametrize("parts", [("checkpoints",), ("checkpoints", "blobs"), tuple(PARTS)])
def test_parameters_are_numbered_in_the_order_of_the_parts_and_carry_their_types(parts: tuple[str, ...]) -> None:
    """The main part is carried out first, and stands last in the text."""
    found = re.findall(r"\$(\d+)::(\w+)\[\]", arrays_sql(parts))
    assert [kind for _, kind in sorted(found, key=lambda each: int(each[0]))] == [
        carried(kind) for part in parts for kind in PARTS[part].kinds
    ]
    assert sorted(int(number) for number, _ in found) == list(range(1, len(found) + 1))
    first_of_main = arrays_sql(parts).index("$1::")
    assert all(arrays_sql(parts).index(f"{part}_part AS (") < first_of_main for part in parts[1:])


def test_probe_is_the_statement_of_everything_with_an_empty_checkpoint_and_nothing_else() -> None:
    rows = rows_in(probe_statement("probe", "id"))
    assert {part: len(found) for part, found in rows.items()} == {
        "checkpoints": 1,
        "blobs": 0,
        "writes": 0,
        "special_writes": 0,
    }
    assert rows["checkpoints"][0] == {
        "thread_id": "probe",
        "checkpoint_ns": "",
        "checkpoint_id": "id",
        "parent": None,
        "checkpoint": "{}",
        "metadata": "{}",
    }
