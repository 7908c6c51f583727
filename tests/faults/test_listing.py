"""Which threads there are: one answer from memory, SQLite and PostgreSQL, and never one of another user's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.backends import listing
from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.listing import Cursor, HeadQuery, ThreadHead
from enhanced_checkpointing.operations import DeleteThread, Put
from tests.support.backends import BACKENDS, checkpoint_id, config_of, opened_backend, put

THREADS = ("a", "b", 'O\'Neil "x" %s \\', "ünï-Ω-漢", "", "z" * 300)
USERS: tuple[Any, ...] = ("ada", "bob", "42", 42, -1, "a'\"b\\c", "ünï 漢", "", "x" * 5000)
NOBODY: tuple[Any, ...] = (None, True, 1.5, ["ada"], {"name": "ada"})
ODD_METADATA: tuple[Mapping[str, Any], ...] = (
    {},
    {"team": "red"},
    {"team": "blue", "user_id_": "ada"},
    {"nested": {"user_id": "ada"}, "list": ["user_id"]},
    {"step": "seven", "text": 'a\nb\t"user_id": "ada"'},
    {"step": None, "parents": {"": "x"}},
)


@dataclass(frozen=True)
class Stored:
    """One checkpoint of the model."""

    number: int
    thread_id: str
    namespace: str
    metadata: Mapping[str, Any]

    def operation(self) -> Put:
        return put(self.thread_id, self.number, namespace=self.namespace, metadata=self.metadata)


def user_of(metadata: Mapping[str, Any]) -> str | None:
    user = metadata.get("user_id")
    return str(user) if type(user) in (str, int) else None


def expected(rows: Sequence[Stored], user_id: str | None, wanted: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What a listing is to be, said as plainly as can be: of each thread its facts, in order."""
    found = []
    for thread_id in {row.thread_id for row in rows}:
        own = sorted((row for row in rows if row.thread_id == thread_id), key=lambda row: row.number)
        of_root = [row for row in own if row.namespace == ""]
        head = (of_root or own)[-1]
        naming = [row for row in of_root if user_of(row.metadata) is not None]
        owner = user_of(naming[-1].metadata) if naming else None
        if user_id is not None and owner != user_id:
            continue
        metadata = {**head.operation().metadata}
        if any(key not in metadata or metadata[key] != value for key, value in wanted.items()):
            continue
        place = naming[-1].number if user_id is not None else head.number
        found.append((place, thread_id, checkpoint_id(head.number), metadata, len(own), owner))
    return sorted(found, reverse=True, key=lambda one: one[:2])


def facts(heads: Sequence[ThreadHead]) -> list[tuple[Any, ...]]:
    return [(one.thread_id, one.checkpoint_id, one.metadata, one.checkpoints, one.user_id) for one in heads]


metadata_of_one = st.builds(
    lambda odd, user: {**odd, **user},
    st.sampled_from(ODD_METADATA),
    st.sampled_from([{}, *({"user_id": user} for user in (*USERS, *NOBODY))]),
)
checkpoints = st.lists(
    st.tuples(st.sampled_from(THREADS), st.sampled_from(["", "", "", "child:1"]), metadata_of_one), max_size=25
)
queries = st.tuples(
    st.one_of(st.none(), st.sampled_from([str(user) for user in USERS])),
    st.sampled_from([{}, {}, {"team": "red"}, {"step": 3}, {"step": None}, {"none": None}]),
    st.integers(1, 4),
)


@asynccontextmanager
async def all_backends(database_url: str, folder: Path) -> AsyncIterator[dict[str, Backend]]:
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(opened_backend(config_of(name, database_url, folder)))
            for name in BACKENDS
        }


@contextmanager
def running(database_url: str, folder: Path) -> Iterator[tuple[dict[str, Backend], Callable[..., Any]]]:
    """All backends, and what runs a coroutine on their loop: for tests that hypothesis calls many times."""
    with asyncio.Runner() as runner:
        context = all_backends(database_url, folder)
        backends = runner.run(context.__aenter__())
        try:
            yield backends, runner.run
        finally:
            runner.run(context.__aexit__(None, None, None))


async def fill(backend: Backend, rows: Sequence[Stored]) -> None:
    """Hold these rows and nothing else."""
    while thread_ids := await backend.thread_ids(None, 100):
        for thread_id in thread_ids:
            await backend.apply(DeleteThread(thread_id))
    for row in rows:
        await backend.apply(row.operation())


async def pages(backend: Backend, query: HeadQuery, *, by_id: bool) -> list[ThreadHead]:
    """All pages of a listing, each found by the end of the one before."""
    found: list[ThreadHead] = []
    while True:
        before = Cursor(found[-1].checkpoint_id, None if by_id else found[-1].thread_id) if found else query.before
        page = await backend.heads(HeadQuery(query.limit, query.user_id, query.metadata, before))
        found += page
        if len(page) < query.limit:
            return found
        assert len(found) <= len(THREADS) * 2, "the pages go round in a circle"


def check_same_answers(database_url: str, folder: Path, examples: int) -> None:
    with running(database_url, folder) as (backends, run):

        @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(checkpoints, st.lists(queries, min_size=1, max_size=4), st.booleans())
        def same_answers(drawn: Any, asked: Any, by_id: bool) -> None:
            rows = [Stored(number, *one) for number, one in enumerate(drawn)]
            for name, backend in backends.items():
                run(fill(backend, rows))
                known = sorted({row.thread_id for row in rows})
                assert sorted(run(backend.thread_ids(None, 100))) == known, name
                for user_id, wanted, limit in [*asked, (None, {}, 3)]:
                    model = [one[1:] for one in expected(rows, user_id, wanted)]
                    query = HeadQuery(limit, user_id, wanted)
                    assert facts(run(backend.heads(query))) == model[:limit], name
                    assert facts(run(pages(backend, query, by_id=by_id))) == model, name

        same_answers()


def test_three_databases_list_the_same_threads_whatever_is_in_them(database_url: str, tmp_path: Path) -> None:
    check_same_answers(database_url, tmp_path, examples=25)


@pytest.mark.thorough
def test_small_steps_through_a_database_find_the_same_threads(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "FIRST_STEP", 1)
    monkeypatch.setattr(listing, "LONGEST_WALK", 2)
    monkeypatch.setattr(listing, "THREADS_AT_ONCE", 2)
    check_same_answers(database_url, tmp_path, examples=25)
