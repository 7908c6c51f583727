"""What `checkpointing threads` makes of stored values: plain data, text for people, trees and differences, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Interrupt, Overwrite, Send
from rich.console import Console

from enhanced_checkpointing.cli.output import UsageError, clean
from enhanced_checkpointing.cli.threads.checkpoint import (
    View,
    as_object,
    conversation_of,
    joined,
    message_of,
    nodes_between,
    rebuilt,
    view_of,
)
from enhanced_checkpointing.cli.threads.database import Holding
from enhanced_checkpointing.cli.threads.diff import MOST_COMPARED, Range, differences, range_of, show_differences
from enhanced_checkpointing.cli.threads.history import Node, drawn, short_length
from enhanced_checkpointing.cli.threads.list import parsed_metadata, print_whole, table_of
from enhanced_checkpointing.cli.threads.show import Subject, lines_of, messages_of
from enhanced_checkpointing.cli.values import PlainSerializer, Unreadable, as_json, brief, shown

OFFICIAL, PLAIN = JsonPlusSerializer(), PlainSerializer()


@dataclass
class Point:
    across: int
    up: int


class Colour(Enum):
    RED = "red"


def plain(value: Any) -> Any:
    """A value as it comes back from a database."""
    return PLAIN.loads_typed(OFFICIAL.dumps_typed(value))


def screen(width: int = 80) -> Console:
    return Console(file=StringIO(), width=width, color_system=None, highlight=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a text\nof two lines", "a text of two lines"),
        (None, "None"),
        ({"a": [1, "b", None]}, '{"a": [1, "b", None]}'),
        (Point(1, 2), "Point(across=1, up=2)"),
        (Colour.RED, 'Colour("red")'),
        ({"when": datetime(2026, 1, 2, tzinfo=UTC)}, '{"when": 2026-01-02T00:00:00+00:00}'),
        ({3}, "{3}"),
        (b"12345", "<5 bytes of binary data>"),
        (Send("node", {"a": 1}), 'Send("node", {"a": 1})'),
        ("\x1b[31mred\u202eder", "\\x1b[31mred\\u202eder"),
    ],
)
def test_values_are_one_line_and_nothing_that_a_terminal_obeys(value: Any, text: str) -> None:
    assert shown(plain(value)) == text


def test_long_values_are_cut_and_say_how_much_is_missing() -> None:
    assert shown("x" * 30, 10) == "xxxxxxxxxx… (20 more characters)"
    assert "… 800 more]" in shown(list(range(1000)), 10_000)
    assert shown(list(range(1000))).endswith("998, 999]")
    assert brief({"question": "why?", "options": [1, 2]}, 30) == "question: why?, options: [1, 2…"
    assert clean("a\r\nb\x07") == "a\nb\\x07"


def test_what_cannot_be_opened_is_said_to_be_so() -> None:
    assert PLAIN.loads_typed(("pickle", b"cos\nsystem\n")) == Unreadable("pickle", 11)
    assert PLAIN.loads_typed(("msgpack+aes", b"123")) == Unreadable("msgpack+aes", 3)
    assert PLAIN.loads_typed(("msgpack", b"\xc1")) == Unreadable("damaged msgpack", 1)
    assert shown(Unreadable("msgpack+aes", 3)) == "<not opened: msgpack+aes, 3 bytes>"
    assert as_json({"a": Unreadable("pickle", 3), 1: (float("nan"), b"1")}) == {
        "a": "<pickle, 3 bytes>",
        "1": ["nan", "<1 bytes>"],
    }
    assert PLAIN.loads_typed(PLAIN.dumps_typed([Unreadable("pickle", 3)])) == [Unreadable("pickle", 3)]


def test_messages_of_langchain_and_plain_ones_are_read_alike() -> None:
    call = {"name": "look", "args": {"city": "Paris"}, "id": "1"}
    function = {"function": {"name": "look", "arguments": '{"city": "Paris"}'}, "id": "1"}
    ours = conversation_of(plain([HumanMessage("hi"), AIMessage("", tool_calls=[call])]))
    theirs = conversation_of(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [function]}]
    )
    assert ours is not None
    assert ours == theirs
    assert ours[1].calls[0].text == 'look(city="Paris")'
    parts: list[str | dict[Any, Any]] = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": "data:…"},
        {"type": "tool_use"},
    ]
    found = message_of(plain(AIMessage(parts)))
    assert found is not None
    assert found.text == "see\n[image]"
    assert conversation_of([]) is conversation_of(["hi"]) is conversation_of({"role": "user"}) is None
    assert message_of({"type": "invoice", "content": 3}) is None


def test_conversation_fits_into_eighty_columns_and_keeps_its_indents() -> None:
    told = [
        SystemMessage("Be kind."),
        AIMessage("one\n  - two " + "word " * 40, tool_calls=[{"name": "look", "args": {}, "id": "1"}]),
        ToolMessage("no", tool_call_id="1", name="look", status="error"),
        AIMessage(""),
        AIMessage("\n".join(["line"] * 40)),
    ]
    messages = conversation_of(plain(told))
    assert messages is not None
    found = list(messages_of(messages, 68, full=False))
    assert [who for who, _, _ in found] == ["system", "ai", "tool FAILED", "ai", "ai"]
    assert max(len(line) for _, lines, _ in found for line in lines) <= 68
    assert found[1][1][1].startswith("  - two word")
    assert found[1][1][-1] == "-> look()"
    assert found[2][1] == ["look: no"]
    assert found[3][1] == ["(empty)"]
    assert found[4][1][-1] == "… (28 more lines)"


def tuple_of(values: dict[str, Any], writes: list[tuple[str, str, Any]], **parts: Any) -> CheckpointTuple:
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {name: plain(value) for name, value in values.items()}}
    checkpoint |= parts
    return CheckpointTuple(
        {"configurable": {"thread_id": "a", "checkpoint_ns": "", "checkpoint_id": checkpoint["id"]}},
        checkpoint,
        {"step": 1, "source": "loop"},
        None,
        [(task, channel, plain(value)) for task, channel, value in writes],
    )


def test_next_nodes_are_told_by_branches_joins_and_sends() -> None:
    values = {
        "branch:to:due": None,
        "branch:to:done": None,
        "join:one+two:both": {"one", "two"},
        "join:one+three:waiting": {"one"},
        "__pregel_tasks": [Send("worker", 1), Send("worker", 2)],
    }
    versions = dict.fromkeys(values, "2")
    seen = {"done": {"branch:to:done": "2"}, "due": {"branch:to:due": "1"}}
    view = view_of(tuple_of(values, [], channel_versions=versions, versions_seen=seen))
    assert view.next_nodes == ("both", "due", "worker")
    assert view.channels == {}
    assert nodes_between({"a": {"x": "1"}}, {"a": {"x": "1"}, "b": {"x": "1"}, "__start__": {"x": "1"}}) == (
        "b",
        "start",
    )


def test_input_that_nobody_has_taken_is_shown_and_only_known_graphs_have_an_end() -> None:
    begun = tuple_of({"__start__": {"a": 1}}, [], channel_versions={"__start__": "1"}, versions_seen={"__input__": {}})
    assert (view_of(begun).next_nodes, view_of(begun).given) == (("__start__",), {"a": 1})
    function = tuple_of(
        {"__start__": 1, "__end__": "done"},
        [],
        channel_versions={"__start__": "1"},
        versions_seen={"f": {"__start__": "1"}},
    )
    assert (view_of(function).next_nodes, view_of(function).channels) == ((), {"__end__": "done"})

    def told(found: CheckpointTuple) -> dict[str, str]:
        subject = Subject(view_of(found), None, is_newest=True)
        return {name: text for name, text, _ in lines_of(subject, 0.0, full=False)}

    assert told(begun)["input"] == "a: 1"
    assert told(tuple_of({}, [], channel_versions={"__start__": "1"}))["next"].startswith("nothing")
    assert told(tuple_of({}, [], channel_versions={"mine": "1"}))["next"] == "not known"


@pytest.mark.parametrize(
    ("holding", "way_out"),
    [
        (Holding("a", Path("j"), waiting=2, owners=("process 1",), alive=True), "running process drains it"),
        (Holding("a", Path("j"), waiting=2, owners=("ended process",)), "journal drain"),
        (Holding("a", Path("j"), dead_letters=1, owners=("ended process",)), "journal retry"),
        (Holding("a", Path("j"), waiting=1, damaged=True, owners=("ended process",)), "journal quarantine"),
    ],
)
def test_what_the_journal_holds_comes_with_what_to_do(holding: Holding, way_out: str) -> None:
    assert holding.owners[0] in holding.text
    assert way_out in holding.way_out


def test_interrupts_that_were_answered_do_not_wait() -> None:
    writes = [
        ("answered", "__interrupt__", [Interrupt(value="first?", id="1")]),
        ("answered", "__resume__", ["yes"]),
        ("answered", "note", "done"),
        ("waiting", "__interrupt__", (Interrupt(value="second?", id="2"),)),
        ("failed", "__error__", ValueError("no")),
    ]
    view = view_of(tuple_of({}, writes))
    assert [(one.value, one.interrupt_id) for one in view.interrupts] == [("second?", "2")]
    assert [one.value for one in view.errors] == ["ValueError('no')"]
    assert [(one.task_id, one.value) for one in view.writes] == [("answered", "done")]
    report = as_object(view)
    assert report["pending_writes"] == [{"task_id": "answered", "channel": "note", "value": "done"}]
    told = [(name, text) for name, text, _ in lines_of(Subject(view, None, is_newest=True), 0.0, full=False)]
    assert ("WAITS", "second?") in told
    assert ("ERROR", "a task failed: ValueError('no')") in told
    told = [(name, text) for name, text, _ in lines_of(Subject(view, None, is_newest=False), 0.0, full=False)]
    assert ("asked", "second?") in told


def test_delta_channels_are_rebuilt_by_what_was_written() -> None:
    first, second = HumanMessage("a", id="1"), HumanMessage("b", id="2")
    seed = plain([first])
    assert rebuilt(seed, plain([[second], [HumanMessage("c", id="1")]])) == plain([HumanMessage("c", id="1"), second])
    assert rebuilt(seed, plain([[RemoveMessage(id="1")], second])) == plain([second])
    assert rebuilt(None, [["a"], ["b"]]) == ["a", "b"]
    assert rebuilt({"a": 1}, [{"b": 2}]) == {"a": 1, "b": 2}
    assert rebuilt(["a"], [plain(Overwrite(["z"]))]) == ["z"]
    assert rebuilt(3, [4]) == 4
    assert joined([], plain([first, RemoveMessage(id="__remove_all__"), second])) == plain([second])


def drawing(*pairs: tuple[str, str | None]) -> list[str]:
    nodes = [Node(*pair) for pair in pairs]
    return [row.lines if row.node is None else f"{row.lines} {nodes[row.node].checkpoint_id}" for row in drawn(nodes)]


def test_tree_is_drawn_with_its_forks() -> None:
    assert drawing(("c", "b"), ("b", "a"), ("a", None)) == ["* c", "* b", "* a"]
    assert drawing(("d", "b"), ("c", "b"), ("b", "a"), ("a", None)) == ["* d", "| * c", "|/", "* b", "* a"]
    assert drawing(("f", "c"), ("e", "b"), ("d", "c"), ("c", "a"), ("b", "a"), ("a", None)) == [
        "* f",
        "| * e",
        "| | * d",
        "|_|/",
        "* | c",
        "| * b",
        "|/",
        "* a",
    ]
    assert drawing(("c", None), ("b", "gone"), ("a", None)) == ["* c", "* b", "| * a"]


def test_ids_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    assert short_length(["1f0a3c2e-1b2c-6abc-8001", "1f0a3c2e-1b2d-6abc-8001"]) == 13
    assert short_length(["1f0a3c2e-1b2c-6abc-8001", "1f0a3c2e-1b2c-6abd-8001"]) == 18
    assert short_length(["a"]) == 13


def test_differences_name_messages_items_and_keys() -> None:
    before = {
        "messages": plain([HumanMessage("a", id="1"), AIMessage("b", id="2"), AIMessage("c", id="3")]),
        "log": ["x", "y"],
        "plan": {"a": {"b": 1}, "gone": 2},
        "same": 1,
        "old": 1,
    }
    after = {
        "messages": plain([HumanMessage("a", id="1"), AIMessage("B", id="2"), AIMessage("d", id="4")]),
        "log": ["x", "new", "y"],
        "plan": {"a": {"b": 2}, "came": 3},
        "same": 1,
        "new": 1,
    }
    found = {one.channel: one for one in differences(before, after)}
    changes = [
        (change.before and change.before.text, change.after and change.after.text)
        for change in found["messages"].messages
    ]
    assert changes == [("b", "B"), ("c", None), (None, "d")]
    assert [change.as_json() for change in found["log"].values] == [{"where": "[1]", "after": "new"}]
    assert [change.as_json() for change in found["plan"].values] == [
        {"where": "a.b", "before": 1, "after": 2},
        {"where": "gone", "before": 2},
        {"where": "came", "after": 3},
    ]
    assert {name: one.kind for name, one in found.items()} == {
        "messages": "changed",
        "log": "changed",
        "plan": "changed",
        "old": "removed",
        "new": "added",
    }
    assert differences(before, before) == []


def test_long_lists_are_compared_by_their_ends() -> None:
    long = list(range(MOST_COMPARED))
    (channel,) = differences({"log": long}, {"log": [*long[:5], "x", *long[6:], "y"]})
    assert channel.values[0].as_json() == {"where": "[5]", "before": 5, "after": "x"}
    (channel,) = differences({"log": long}, {"log": [*long, "y"]})
    assert [change.as_json() for change in channel.values] == [{"where": f"[{MOST_COMPARED}]", "after": "y"}]


def view(channels: dict[str, Any], *next_nodes: str) -> View:
    return View("a", "", "an-id", None, None, {"step": 3, "source": "loop"}, channels, next_nodes)


def test_difference_is_printed_with_marks_at_eighty_columns() -> None:
    before, after = view({"log": ["a"]}, "one"), view({"log": ["a", "word " * 40]})
    console = screen()
    show_differences(console, before, after, differences(before.channels, after.channels), full=False)
    lines = printed(console).splitlines()
    assert lines[:4] == ["--- an-id step 3, loop", "+++ an-id step 3, loop", "log (changed)", lines[3]]
    assert lines[3].startswith("  + [1] = word word")
    assert lines[-3:] == ["next", "  - one", "  + nothing"]
    assert max(map(len, lines)) <= 80


def test_ranges_are_read_as_people_write_them() -> None:
    assert range_of(None, None) == Range(None, None)
    assert range_of("a", None) == range_of("..a", None) == Range(None, "a")
    assert range_of("a", "b") == range_of("a..b", None) == Range("a", "b")
    assert range_of("a..", None) == Range("a", None)
    with pytest.raises(UsageError):
        range_of("a..b", "c")


def test_metadata_is_json_or_a_text() -> None:
    assert parsed_metadata(["a=1", 'b="1"', "c=x=y", "d=true"]) == {"a": 1, "b": "1", "c": "x=y", "d": True}
    deep = "[" * 100_000
    assert parsed_metadata([f"a={deep}"]) == {"a": deep}
    with pytest.raises(UsageError):
        parsed_metadata(["=1"])


def entry(thread_id: str, **fields: Any) -> dict[str, Any]:
    known = {
        "thread_id": thread_id,
        "checkpoint_id": "1",
        "updated_at": "2026-01-01T00:00:00+00:00",
        "step": 3,
        "checkpoints": 12_345,
        "size": 4096,
        "user_id": None,
        "status": "active",
        "metadata": {},
    }
    return {**known, **fields}


def test_list_leaves_out_what_says_nothing_and_keeps_ids_whole() -> None:
    now = datetime(2026, 1, 1, 3, 20, tzinfo=UTC).timestamp()
    console = screen()
    print_whole(console, table_of([entry("a" * 36), entry("b", step=None, updated_at=None)], now))
    lines = [line.rstrip() for line in printed(console).splitlines()]
    assert lines[0].split() == ["thread", "age", "step", "checkpoints", "size"]
    assert lines[1].split() == ["a" * 36, "3", "h", "3", "12,345", "4.0", "KiB"]
    assert lines[2].split() == ["b", "-", "-", "12,345", "4.0", "KiB"]
    assert max(map(len, lines)) <= 80
    console = screen()
    print_whole(console, table_of([entry("a" * 100, user_id="alice", status="failed")], now))
    assert "a" * 100 in printed(console)
    assert "alice" in printed(console)
    assert "failed" in printed(console)
