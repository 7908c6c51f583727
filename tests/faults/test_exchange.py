"""Threads that are exported and imported are the same, byte for byte, and nothing damaged gets in."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.operations import Operation, Put
from enhanced_checkpointing.threads.exchange import NoExport, export_threads, import_threads
from enhanced_checkpointing.threads.exchange_lines import DamagedLine, content_of, line_of
from enhanced_checkpointing.threads.migrate import Orders, Tally
from tests.support.author import Author
from tests.support.checkpointer import postgres, sqlite
from tests.support.fuzz import examples
from tests.support.graphs import GRAPHS, GraphCase, run_case
from tests.support.threads import backend_of, bare_sqlite, shown

CASES = pytest.mark.parametrize("case", GRAPHS.values(), ids=GRAPHS)


async def exported(source: Backend, *thread_ids: str) -> bytes:
    stream = io.BytesIO()
    tally = await export_threads(source, stream, thread_ids=thread_ids, tell=lambda _: None)
    assert tally.complete, tally.problems
    return stream.getvalue()


async def imported(lines: bytes, target: Backend, orders: Orders = Orders()) -> Tally:  # noqa: B008  # it is frozen
    return await import_threads(io.BytesIO(lines), target, orders)


async def read(backend: Backend, thread_id: str = "thread") -> list[Operation]:
    return [operation async for chunk in backend.read_thread(thread_id) for operation in chunk]


def outcomes(tally: Tally) -> dict[str, int]:
    return {outcome.value: count for outcome, count in tally.outcomes.items()}


async def some_threads(backend: Backend, count: int = 4) -> None:
    for number in range(count):
        author = Author(f"thread-{number}")
        await backend.apply_all([author.put({"log": [number]}), author.writes(("log", 1)), author.put({"n": 1})], {})


@CASES
async def test_thread_of_every_kind_of_graph_is_the_same_after_it_was_lines(
    case: GraphCase, database_url: str, tmp_path: Path
) -> None:
    """From SQLite by lines to PostgreSQL, from there by lines to another SQLite."""
    ends = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    async with (
        backend_of(sqlite(ends[0])) as source,
        backend_of(postgres(database_url)) as middle,
        backend_of(sqlite(ends[1])) as back,
        bare_sqlite(ends[0]) as one,
        bare_sqlite(ends[1]) as other,
    ):
        await run_case(case, one, "thread")
        for start, end in ((source, middle), (middle, back)):
            lines = await exported(start)
            assert outcomes(await imported(lines, end)) == {"copied": 1}
            assert outcomes(await imported(lines, end)) == {"equal": 1}
        assert await shown(one, "thread") == await shown(other, "thread")
        assert await read(source) == await read(back)


async def test_import_into_sqlite_makes_the_very_bytes_that_were_there(tmp_path: Path) -> None:
    """Order of keys and all."""
    rows = []
    ends = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    async with backend_of(sqlite(ends[0])) as source, backend_of(sqlite(ends[1])) as back:
        async with bare_sqlite(ends[0]) as saver:
            await run_case(GRAPHS["subgraph"], saver, "thread")
        await imported(await exported(source), back)
        for path in ends:
            async with bare_sqlite(path) as saver:
                text = "SELECT * FROM checkpoints ORDER BY checkpoint_ns, checkpoint_id"
                rows.append(await saver.conn.execute_fetchall(text))  # type: ignore[attr-defined]
    assert [tuple(row) for row in rows[0]] == [tuple(row) for row in rows[1]]


async def test_lines_can_be_read_by_people_and_by_programs(tmp_path: Path) -> None:
    async with backend_of(sqlite(tmp_path / "source.sqlite")) as source:
        await some_threads(source, 1)
        lines = [json.loads(line) for line in (await exported(source)).splitlines()]
    assert [line["kind"] for line in lines] == [
        "export",
        "checkpoint",
        "writes",
        "checkpoint",
        "end of thread",
        "end of export",
    ]
    assert lines[0]["source"] == str(tmp_path / "source.sqlite")
    assert lines[1]["values"] == {"log": {"type": "msgpack", "json": [0]}}
    assert lines[1]["metadata"] == {"source": "loop", "step": 1}
    assert lines[2]["writes"] == [["log", {"type": "msgpack", "json": 1}]]


async def test_single_threads_can_be_exported_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    ends = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    async with backend_of(sqlite(ends[0])) as source, backend_of(sqlite(ends[1])) as back:
        await some_threads(source)
        assert outcomes(await imported(await exported(source, "thread-2", "thread-0", "thread-2"), back)) == {
            "copied": 2
        }
        assert await back.thread_ids(None, 10) == ["thread-0", "thread-2"]
        tally = await export_threads(source, io.BytesIO(), thread_ids=["nobody"], tell=lambda _: None)
        assert outcomes(tally) == {"failed": 1}
        assert tally.problems[0].reasons == ("the source has no such thread",)


async def test_damaged_line_is_named_and_costs_its_thread_alone(tmp_path: Path) -> None:
    ends = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    async with backend_of(sqlite(ends[0])) as source, backend_of(sqlite(ends[1])) as back:
        await some_threads(source)
        lines = (await exported(source)).splitlines(keepends=True)
        lines[7] = lines[7].replace(b'"log"', b'"lag"')
        tally = await imported(b"".join(lines), back)
        assert outcomes(tally) == {"copied": 3, "failed": 1}
        assert tally.problems[0].thread_id == "thread-1"
        assert "line 8: its check does not fit" in tally.problems[0].reasons[0]
        assert await back.thread_ids(None, 10) == ["thread-0", "thread-2", "thread-3"], "nothing of it got in"


async def test_import_that_was_cut_off_is_completed_by_the_next_one(tmp_path: Path) -> None:
    ends = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    async with backend_of(sqlite(ends[0])) as source, backend_of(sqlite(ends[1])) as back:
        await some_threads(source)
        lines = await exported(source)
        cut = await imported(lines[: len(lines) // 2], back)
        assert not cut.complete
        assert "the export ends too early" in cut.problems[-1].reasons[0]
        whole = await imported(lines, back)
        assert whole.complete
        assert sum(outcomes(whole).values()) == 4
        assert outcomes(whole)["equal"] >= 1


async def test_thread_that_went_on_in_the_target_is_refused_and_replaced_only_when_told(tmp_path: Path) -> None:
    async with backend_of(sqlite(tmp_path / "source.sqlite")) as source:
        author = Author()
        await source.apply(author.put({"log": [1]}))
        lines = await exported(source)
        before = await read(source)
        await source.apply(author.put({"log": [2]}))
        assert outcomes(await imported(lines, source)) == {"refused": 1}
        assert outcomes(await imported(lines, source, Orders(rehearse=True, overwrite=True))) == {"replaced": 1}
        assert len(await read(source)) == 2
        assert outcomes(await imported(lines, source, Orders(overwrite=True))) == {"replaced": 1}
        assert await read(source) == before


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"not JSON\n",
        b'{"kind": "export", "format": 1}\n',
        line_of({"kind": "export", "format": 2}),
        line_of({"kind": "checkpoint", "thread": "a", "line": 1}),
    ],
)
async def test_what_is_no_export_of_ours_is_refused_before_anything_is_done(lines: bytes, tmp_path: Path) -> None:
    async with backend_of(sqlite(tmp_path / "back.sqlite")) as back:
        with pytest.raises(NoExport, match=r"Line 1 .*Nothing was imported"):
            await imported(lines, back)


DIGITS = "9" * 5_000
BODIES = (
    "[]",
    '"text"',
    "7",
    '{"a": ' + "[" * 3_000 + "]" * 3_000,
    '{"line": ' + DIGITS,
    '{"no json"',
    '{"\ud800": "half a character"',
    '{"a": "\x00"',
    "",
)
"""Lines without their checks, which are made right, and without their last brace."""
ODD: tuple[Any, ...] = (
    *(None, True, -1, 2**70, 1e308, "", "\0", "\ud800", "x" * 10_000, [], [[]], [None, 3], {}, {"unchanged": True}),
    *({"type": "pickle"}, {"type": "strange", "data": ""}, {"type": "msgpack", "data": "no base64!"}),
    *({"type": "msgpack", "json": 2**90}, {"type": 7, "data": ""}, {"type": "msgpack"}),
    json.loads("[" * 600 + "]" * 600),
)


def with_check(body: bytes) -> bytes:
    """A line as whoever can write files would make it."""
    return body + f', "check": "{blake2b(body, digest_size=8).hexdigest()}"}}\n'.encode()


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a line."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(line: bytes, data: st.DataObject) -> bytes:
    """The line with something else in one place, or without it, or with another body altogether."""
    if data.draw(st.integers(0, 4)) == 0:
        return with_check(data.draw(st.sampled_from(BODIES)).encode(errors="surrogatepass"))
    content = content_of(line)
    *path, last = data.draw(st.sampled_from([*places(content)]))
    inner = content
    for key in path:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(st.sampled_from(ODD))
    else:
        del inner[last]
    return line_of(content)


def is_still_the_first(line: bytes) -> bool:
    try:
        content = content_of(line)
    except DamagedLine:
        return False
    return (content.get("kind"), content.get("format")) == ("export", 1)


async def import_changed(lines: list[bytes], place: int, whole: dict[str, int]) -> Tally:
    """Import lines one of which was changed; of each thread, so many checkpoints are there or none."""
    async with backend_of(sqlite(":memory:")) as target:
        if not is_still_the_first(lines[0]):
            with pytest.raises(NoExport, match=r"^Line 1 .*Nothing was imported"):
                await imported(b"".join(lines), target)
            assert await target.thread_ids(None, 10) == []
            return Tally()
        tally = await imported(b"".join(lines), target)
        for thread_id in await target.thread_ids(None, 10):
            if thread_id in whole:
                checkpoints = [one for one in await read(target, thread_id) if isinstance(one, Put)]
                assert len(checkpoints) == whole[thread_id]
        for problem in tally.problems:
            for reason in problem.reasons:
                assert len(reason) < 600
                assert "\n" not in reason
        return tally


@settings(max_examples=examples(80))
@given(st.data())
def test_line_that_anybody_may_have_written_ends_with_a_sentence_and_half_imports_nothing(data: st.DataObject) -> None:
    lines = lines_of_three_threads()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = changed(lines[place], data)
    asyncio.run(import_changed(lines, place, {f"thread-{number}": 2 for number in range(3)}))


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_malformed_line_is_named_and_the_other_threads_are_imported(body: str) -> None:
    lines = lines_of_three_threads()
    lines[6] = with_check(body.encode(errors="surrogatepass"))
    tally = asyncio.run(import_changed(lines, 6, {"thread-0": 2, "thread-2": 2}))
    assert outcomes(tally)["copied"] == 2
    assert tally.problems[0].reasons[0].startswith("line 7: ")


@cache
def _three_threads() -> bytes:
    async def write() -> bytes:
        async with backend_of(sqlite(":memory:")) as source:
            await some_threads(source, 3)
            return await exported(source)

    return asyncio.run(write())


def lines_of_three_threads() -> list[bytes]:
    return _three_threads().splitlines(keepends=True)
