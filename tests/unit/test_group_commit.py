"""What gathers while batches are on their way, and how it goes out: keys, lanes, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.resilience.deadline import TICK
from enhanced_checkpointing.resilience.group_commit import USED_TO_BE_ALONE, GroupCommit
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


caller: ContextVar[str] = ContextVar("caller", default="nobody")


class Post:
    """Items are words: the first letter is the key, the length the weight. A batch is away until it `arrives`.

    What is `left` to be done of a batch after it has arrived is keyed by its first item.
    """

    def __init__(
        self, *, lanes: int = 1, limit: int = 100, max_weight: int = 1000, patience: float = float("inf")
    ) -> None:
        self.urgent: set[str] = set()
        self.sent: list[list[str]] = []
        self.callers: list[str] = []
        self.left: dict[str, Awaitable[None]] = {}
        self.errors: dict[str, BaseException] = {}
        self.away: dict[str, asyncio.Event] = {}
        self.group: GroupCommit[str] = GroupCommit(
            self._send,
            key=lambda item: item[0],
            weight=len,
            lanes=lanes,
            limit=limit,
            max_weight=max_weight,
            urgent=self.urgent.__contains__,
            look_every=0.02,
            patience=patience,
        )

    async def _send(self, batch: Sequence[str]) -> Awaitable[None] | None:
        self.sent.append(list(batch))
        self.callers.append(caller.get())
        self.away[batch[0]] = asyncio.Event()
        await self.away[batch[0]].wait()
        if (error := self.errors.pop(batch[0], None)) is not None:
            raise error
        return self.left.pop(batch[0], None)

    async def submit(self, *items: str) -> None:
        for item in items:
            self.group.submit(item)
        await turns()

    async def arrive(self, *first_items: str) -> None:
        for first in first_items:
            self.away[first].set()
        await turns()

    async def finish(self) -> None:
        """Let everything arrive: what still waited when its loop ends would begin then."""
        while len(self.group):
            await self.arrive(*self.away)


async def turns() -> None:
    """Let everything go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_lone_item_goes_at_once() -> None:
    post = Post()
    post.group.submit("a1")
    await asyncio.sleep(0)
    assert post.sent == [["a1"]]


async def test_all_who_come_in_the_same_turn_of_the_loop_go_together() -> None:
    post = Post(lanes=4)
    await post.submit("a1", "b1", "a2", "c1")
    assert post.sent == [["a1", "a2", "b1", "c1"]]


async def test_what_comes_while_a_batch_is_on_its_way_goes_together_when_it_has_arrived() -> None:
    post = Post()
    for item in ("a1", "b1", "c1", "b2"):
        await post.submit(item)
    assert post.sent == [["a1"]]
    await post.arrive("a1")
    assert post.sent == [["a1"], ["b1", "b2", "c1"]]


async def test_those_whom_the_end_of_a_batch_woke_come_along_with_what_waited() -> None:
    post = Post()
    await post.submit("a1", "b1", "c1")
    await post.submit("d1")

    async def goes_on(after: str) -> None:
        await post.away["a1"].wait()
        post.group.submit(after)

    woken = [asyncio.ensure_future(goes_on(item)) for item in ("a2", "b2", "c2")]
    await turns()
    await post.arrive("a1")
    assert post.sent[1:] == [["d1", "a2", "b2", "c2"]]
    await asyncio.gather(*woken)


async def test_items_of_a_key_wait_for_the_batch_with_that_key_although_a_lane_is_free() -> None:
    post = Post(lanes=2)
    await post.submit("a1")
    await post.submit("a2", "b1")
    assert post.sent == [["a1"], ["b1"]]
    await post.arrive("b1")
    assert post.sent == [["a1"], ["b1"]]
    await post.arrive("a1")
    assert post.sent == [["a1"], ["b1"], ["a2"]]


@pytest.mark.parametrize("lanes", [1, 2, 3])
async def test_no_more_batches_than_lanes_are_on_their_way(lanes: int) -> None:
    post = Post(lanes=lanes)
    for key in "abcde":
        await post.submit(f"{key}1")
    assert post.sent == [[f"{key}1"] for key in "abcde"[:lanes]]
    await post.arrive("a1")
    assert post.sent[lanes:] == [[f"{key}1" for key in "abcde"[lanes:]]]


async def test_without_lanes_each_key_has_one_of_its_own() -> None:
    post = Post(lanes=0, limit=1)
    await post.submit("a1", "b1", "a2", "c1")
    assert post.sent == [["a1"], ["b1"], ["c1"]]
    await post.arrive("a1")
    assert post.sent[3:] == [["a2"]]


async def test_batch_ends_at_its_limit_and_the_rest_of_a_key_comes_in_its_turn() -> None:
    post = Post(limit=3)
    await post.submit("x")
    await post.submit("a1", "a2", "b1", "b2", "c1")
    await post.arrive("x")
    assert post.sent[1:] == [["a1", "a2", "b1"]]
    await post.arrive("a1")
    assert post.sent[2:] == [["c1", "b2"]], "what waited longest comes first, and no key goes before itself"


async def test_batch_ends_with_the_item_that_makes_it_heavy_enough() -> None:
    post = Post(max_weight=6)
    await post.submit("x")
    await post.submit("aaa", "aaaa", "a1", "b1")
    await post.arrive("x")
    assert post.sent[1:] == [["aaa", "aaaa"]]
    await post.arrive("aaa")
    assert post.sent[2:] == [["b1", "a1"]]


async def test_item_that_is_too_heavy_goes_alone() -> None:
    post = Post(max_weight=2)
    await post.submit("x")
    await post.submit("aaaaaa", "b1")
    await post.arrive("x")
    assert post.sent[1:] == [["aaaaaa"]]


async def test_more_than_goes_into_one_batch_takes_the_other_lanes_at_once() -> None:
    post = Post(lanes=2, limit=2)
    await post.submit("x")
    await post.submit("y")
    await post.submit("a1", "b1", "c1", "d1", "e1")
    await post.arrive("x", "y")
    assert post.sent[2:] == [["a1", "b1"], ["c1", "d1"]]


async def test_more_than_goes_into_one_batch_takes_a_lane_that_was_free_all_the_time() -> None:
    post = Post(lanes=2, limit=2)
    await post.submit("a1", "b1")
    await post.submit("a2", "a3", "b2", "b3")
    assert post.sent == [["a1", "b1"]]
    await post.arrive("a1")
    assert post.sent[1:] == [["a2", "a3"], ["b2", "b3"]]


async def test_what_is_left_of_a_batch_needs_no_lane_while_its_keys_wait() -> None:
    post, done = Post(), asyncio.Event()

    async def left() -> None:
        await done.wait()

    await post.submit("a1")
    post.left["a1"] = left()
    await post.submit("b1")
    await post.arrive("a1")
    assert post.sent == [["a1"], ["b1"]]
    await post.submit("a2")
    await post.arrive("b1")
    assert post.sent == [["a1"], ["b1"]]
    assert "a" in post.group
    done.set()
    await turns()
    assert post.sent == [["a1"], ["b1"], ["a2"]]


# In its caller's own task


async def alone_so_far(post: Post, count: int = USED_TO_BE_ALONE) -> None:
    """So many items, one after the other, each of which has arrived."""
    for number in range(count):
        await post.submit(f"z{number}")
        await post.arrive(f"z{number}")


async def test_item_that_is_used_to_be_alone_is_sent_by_its_caller() -> None:
    post = Post()
    await alone_so_far(post, USED_TO_BE_ALONE - 1)
    assert not post.group.may_enter("a")
    await alone_so_far(post, 1)
    assert post.group.may_enter("a")
    lane = post.group.enter("a1")
    assert "a" in post.group
    await post.submit("b1", "a2")
    assert len(post.sent) == USED_TO_BE_ALONE  # the one lane is taken
    post.group.leave("a1", lane)
    await turns()
    assert post.sent[-1] == ["b1", "a2"]
    assert not post.group.may_enter("c")
    await post.finish()
    assert not len(post.group)


@pytest.mark.parametrize("company", ["in the same turn", "meanwhile"])
async def test_nobody_sends_by_himself_where_there_was_company(company: str) -> None:
    post = Post(lanes=2)
    await alone_so_far(post)
    if company == "meanwhile":
        await post.submit("a1")
        await post.submit("a2")
    else:
        await post.submit("a1", "b1")
    await post.finish()
    assert not post.group.may_enter("c")


async def test_nobody_sends_by_himself_past_what_is_under_way_of_its_key_or_waits() -> None:
    post = Post(lanes=2)
    await alone_so_far(post)
    assert post.group.may_enter("a")
    first = post.group.enter("a1")
    assert not post.group.may_enter("a")  # its key is under way
    post.group.submit("b1")
    assert not post.group.may_enter("c")  # another one is about to take the lane
    await turns()
    assert not post.group.may_enter("c")  # no lane is free
    post.group.leave("a1", first)
    await post.finish()


async def test_item_whose_caller_can_do_no_more_is_sent_in_its_lane_before_the_next_of_its_key() -> None:
    post = Post()
    await alone_so_far(post)
    assert post.group.may_enter("a")
    lane = post.group.enter("a1")
    await post.submit("a2")
    post.group.finish("a1", lane)
    await turns()
    assert post.sent[-1] == ["a1"]
    await post.arrive("a1")
    assert post.sent[-1] == ["a2"]
    await post.finish()
    await post.group.settle(1.0)
    assert not len(post.group)


async def test_settle_waits_for_a_caller_that_sends_by_himself() -> None:
    post = Post()
    await alone_so_far(post)
    assert post.group.may_enter("a")
    lane = post.group.enter("a1")
    settling = asyncio.create_task(post.group.settle(5.0))
    await turns()
    assert not settling.done()
    post.group.leave("a1", lane)
    await turns()
    assert settling.done()


# What cannot wait


async def test_what_becomes_urgent_while_all_lanes_are_taken_goes_without_one_and_takes_its_key_along() -> None:
    post = Post(limit=2)
    await post.submit("x")
    await post.submit("a1", "b1", "a2", "a3", "c1")
    post.urgent |= {"a1", "c1", "x"}
    assert post.sent == [["x"]]
    await asyncio.sleep(0.03)
    assert post.sent == [["x"], ["a1", "a2", "a3", "c1"]]
    await post.submit("a4")
    await post.arrive("x")
    assert post.sent[2:] == [["b1"]], "and a lane less is not there for it"
    await post.submit("d1")
    await post.arrive("a1")
    assert post.sent[3:] == [], "nor a lane more when it is done"
    await post.arrive("b1")
    assert post.sent[3:] == [["d1", "a4"]]
    await post.finish()


async def test_what_is_urgent_when_its_key_is_free_again_goes_at_once() -> None:
    post = Post(lanes=2)
    await post.submit("a1")
    await post.submit("b1")
    await post.submit("c1")
    await post.submit("a2", "b2")
    post.urgent |= {"a2", "c1"}
    await post.arrive("a1")
    assert post.sent[2:] == [["c1"], ["a2"]], "c1 has the lane of a1, and a2 none"
    await post.finish()


async def test_item_that_goes_without_a_lane_has_the_context_of_the_first() -> None:
    post = Post()
    await post.submit("x")
    token = caller.set("urgent")
    await post.submit("a1")
    caller.reset(token)
    post.urgent.add("a1")
    await asyncio.sleep(0.03)
    assert post.callers == ["nobody", "urgent"]
    await post.finish()


async def test_in_place_of_a_lane_that_stays_away_there_is_another_until_it_comes_back() -> None:
    post = Post(patience=0.05)
    await post.submit("a1")
    await post.submit("b1", "a2")
    await asyncio.sleep(0.03)
    assert post.sent == [["a1"]]
    await asyncio.sleep(0.05)
    assert post.sent == [["a1"], ["b1"]]
    await post.submit("c1")
    await post.submit("d1")
    await post.arrive("a1")
    assert post.sent[2:] == [], "its lane was given to b1 already"
    await post.arrive("b1")
    assert post.sent[2:] == [["c1", "d1", "a2"]]
    await post.finish()


async def test_nobody_looks_when_nothing_waits() -> None:
    post = Post()
    await post.submit("a1")
    assert post.group._look_out is None
    await post.submit("b1")
    assert post.group._look_out is not None
    for first in ("a1", "b1"):
        await post.arrive(first)
    await post.group.settle(1.0)
    assert post.group._look_out is None


class Unforeseen(Exception):
    """What nobody expected."""


@pytest.mark.parametrize("where", ["sending", "what is left"])
async def test_error_gives_back_the_lane_and_the_keys(where: str, caplog: pytest.LogCaptureFixture) -> None:
    post = Post()

    async def fails() -> None:
        raise Unforeseen

    await post.submit("a1", "b1")
    if where == "sending":
        post.errors["a1"] = Unforeseen()
    else:
        post.left["a1"] = fails()
    await post.submit("a2", "c1")
    await post.arrive("a1")
    await post.arrive("c1")
    if "a2" in post.away:
        await post.arrive("a2")
    assert sorted(item for batch in post.sent for item in batch) == ["a1", "a2", "b1", "c1"]
    assert len(post.group) == 0
    assert "Unforeseen" in caplog.text, "nothing is swallowed"


async def test_cancelled_batch_gives_back_the_lane_and_the_keys() -> None:
    post = Post()
    await post.submit("a1")
    await post.submit("a2")
    (task,) = post.group._running
    task.cancel()
    await turns()
    assert post.sent == [["a1"], ["a2"]]


async def test_settle_waits_for_all_that_is_under_way_and_waits() -> None:
    post, done = Post(limit=1), asyncio.Event()

    async def left() -> None:
        await done.wait()

    await post.submit("a1", "b1")
    post.left["b1"] = left()
    settling = asyncio.ensure_future(post.group.settle(5.0))
    for first in ("a1", "b1"):
        await post.arrive(first)
        assert not settling.done()
    done.set()
    await turns()
    assert settling.done()


async def test_settle_waits_no_longer_than_it_was_told() -> None:
    post = Post()
    await post.submit("a1")
    started_at = now()
    await post.group.settle(0.05)
    assert now() - started_at == pytest.approx(0.05, abs=1.01 * TICK)
    assert "a" in post.group, "nothing is ended by waiting for it"


async def test_settle_with_nothing_under_way_ends_at_once() -> None:
    started_at = now()
    await Post().group.settle(5.0)
    assert now() == started_at


async def test_batch_is_sent_in_the_context_of_its_first_item() -> None:
    """So that what is logged and traced of it belongs to somebody's call."""
    post = Post()

    def submit(item: str) -> None:
        caller.set(item)
        post.group.submit(item)

    for item in ("a1", "b1", "c1"):
        asyncio.get_running_loop().call_soon(submit, item)
        await turns()
    assert caller.get() == "nobody"
    await post.arrive("a1")
    assert post.callers == ["a1", "b1"]


async def test_key_is_there_while_anything_of_it_waits_or_is_on_its_way() -> None:
    post = Post()
    assert (len(post.group), "a" in post.group, list(post.group.waiting())) == (0, False, [])
    post.group.submit("a1")
    assert (len(post.group), "a" in post.group, list(post.group.waiting())) == (1, True, ["a1"])
    await turns()
    assert (len(post.group), "a" in post.group, list(post.group.waiting())) == (1, True, [])
    await post.submit("a2", "b1", "a3")
    assert (len(post.group), sorted(post.group.waiting())) == (2, ["a2", "a3", "b1"])
    await post.arrive("a1")
    assert (len(post.group), list(post.group.waiting())) == (2, [])
    await post.arrive(post.sent[1][0])
    assert (len(post.group), "a" in post.group, "b" in post.group) == (0, False, False)


# Whatever comes, whenever, and however long it takes

Item = tuple[str, int, int]
"""A key, a weight and a number."""
ITEM = st.tuples(st.sampled_from("abcd"), st.integers(1, 5), st.integers(0, 3))
"""A key, a weight, and after how many turns of the loop it comes."""
BATCH = st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from(["arrives", "arrives", "fails", "fails late"]))
"""How many turns a batch takes, how many what is left of it, and how it ends."""


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(ITEM, max_size=40),
    batches=st.lists(BATCH, min_size=1, max_size=10),
    lanes=st.integers(0, 3),
    limit=st.integers(1, 6),
    max_weight=st.integers(1, 12),
)
def test_each_key_keeps_its_order_nothing_is_lost_and_no_lane_is_used_twice(
    items: list[tuple[str, int, int]], batches: list[tuple[int, int, str]], lanes: int, limit: int, max_weight: int
) -> None:
    asyncio.run(_random_history(items, batches, lanes, limit, max_weight))


async def _random_history(
    items: list[tuple[str, int, int]], batches: list[tuple[int, int, str]], lanes: int, limit: int, max_weight: int
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # batches that fail are what this is about
    sent: list[Item] = []
    busy: set[str] = set()
    away = most_away = 0

    async def wait(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def send(batch: Sequence[Item]) -> Awaitable[None] | None:
        nonlocal away, most_away
        keys = {key for key, _, _ in batch}
        assert not keys & busy, "two batches of one key at once"
        assert 1 <= len(batch) <= limit
        assert sum(weight for _, weight, _ in batch[:-1]) < max_weight
        turns, left_turns, end = batches[len(sent) % len(batches)]
        sent.extend(batch)
        busy.update(keys)
        away += 1
        most_away = max(most_away, away)
        await wait(turns)
        away -= 1

        async def left() -> None:
            await wait(left_turns)
            busy.difference_update(keys)
            if end == "fails late":
                raise Unforeseen

        if end == "fails":
            busy.difference_update(keys)
            raise Unforeseen
        if left_turns == 0 and end == "arrives":
            busy.difference_update(keys)
            return None
        return left()

    group: GroupCommit[Item] = GroupCommit(
        send, key=lambda item: item[0], weight=lambda item: item[1], lanes=lanes, limit=limit, max_weight=max_weight
    )
    numbered = [(key, weight, number) for number, (key, weight, _) in enumerate(items)]
    for item, (_, _, turns) in zip(numbered, items, strict=True):
        await wait(turns)
        group.submit(item)
    for _ in range(1000):
        if not len(group):
            break
        await asyncio.sleep(0)
    assert len(group) == 0
    await group.settle(1.0)
    assert sorted(sent, key=lambda item: item[2]) == numbered
    for key in "abcd":
        assert [item for item in sent if item[0] == key] == [item for item in numbered if item[0] == key]
    assert most_away <= (lanes or 4)
    assert list(group.waiting()) == []
    assert len(asyncio.all_tasks()) == 1
