"""Group commit: what comes while batches are on their way gathers, and goes out together. Knows nothing of databases.

No item waits for company: a lone one goes straight through, in its caller's own task where it is used to be alone, and
the more wait, the more go together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import Context, copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Send = Callable[[Sequence[T]], Awaitable[Awaitable[None] | None]]
"""Sends a batch; returns what is left to do for it that needs no lane. Neither may raise."""


Lane = asyncio.Future[None]
"""Of an item that its caller sends by itself: it ends when that caller comes out of it."""

USED_TO_BE_ALONE = 8
"""After so many batches of one item, with nothing waiting behind them, the next one is taken for another such."""


class GroupCommit(Generic[T]):
    """Sends at most `lanes` batches at a time; 0: as many as there are keys with something to send.

    Items of one key keep their order and are never in two batches at once. A batch ends at `limit` items, or when it
    weighs `max_weight` or more.

    While all lanes are taken, somebody looks every `look_every` seconds: an item that has become `urgent`, and all of
    its key, goes without a lane; and in place of a lane that has been away for `patience` seconds there is another.
    """

    def __init__(
        self,
        send: Send[T],
        *,
        key: Callable[[T], str],
        weight: Callable[[T], int],
        lanes: int,
        limit: int,
        max_weight: int,
        urgent: Callable[[T], bool] = lambda _: False,
        look_every: float = 1.0,
        patience: float = float("inf"),
    ) -> None:
        self._send = send
        self._key = key
        self._weight = weight
        self._free = float(lanes or "inf")
        self._limit = limit
        self._max_weight = max_weight
        self._urgent = urgent
        self._look_every = look_every
        self._patience = patience
        self._waiting: dict[str, list[tuple[T, Context]]] = {}
        self._ready: dict[str, None] = {}
        """The keys that may go out now, in the order in which they came to be so."""
        self._busy: set[str] = set()
        self._running: set[asyncio.Future[None]] = set()
        """The tasks that send, and the lanes in which callers do it themselves."""
        self._alone = 0
        """How many batches in a row were of one item, and nothing came meanwhile."""
        self._away_since: dict[object, float] = {}
        """The lanes that are taken, longest away first."""
        self._look_out: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many keys have something waiting or on its way."""
        return len(self._busy | self._waiting.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._busy or key in self._waiting

    def waiting(self) -> Iterator[T]:
        """What has not been sent yet."""
        return (item for queue in self._waiting.values() for item, _ in queue)

    def submit(self, item: T, *, needs_lane: bool = True) -> None:
        """Send an item as soon as a lane is free, unless it needs none, and what came before it of its key is done."""
        key = self._key(item)
        queue = self._waiting.get(key)
        if queue is None:
            queue = self._waiting[key] = []
        queue.append((item, copy_context()))
        if key not in self._busy:
            if needs_lane:
                self._ready[key] = None
                self._start()
            else:
                self._ready.pop(key, None)
                self._busy.add(key)
                self._launch(self._run_aside(key), copy_context())

    def may_enter(self, key: str) -> bool:
        """Whether the caller of an item of this key may send it by himself.

        It would not gather company that comes in the same turn of the loop: so only after a row of batches without any.
        """
        return (
            self._alone >= USED_TO_BE_ALONE
            and not self._ready
            and self._free >= 1
            and key not in self._busy
            and key not in self._waiting
        )

    def enter(self, item: T) -> Lane:
        """A lane for an item that its caller `may` send by himself, who then leaves it, or has the item finished."""
        self._busy.add(self._key(item))
        loop = asyncio.get_running_loop()
        lane: Lane = loop.create_future()
        self._running.add(lane)
        self._free -= 1
        self._away_since[lane] = loop.time()
        return lane

    def leave(self, item: T, lane: Lane) -> None:
        """The item that `lane` was entered with is done."""
        self._come_out(lane)
        self._give_back(lane)
        if self._waiting:
            self._release([self._key(item)])
            self._start()
        else:
            self._busy.discard(self._key(item))

    def finish(self, item: T, lane: Lane) -> None:
        """Have an item sent after all, in the lane that was entered with it: its caller can do no more."""
        self._come_out(lane)
        self._launch(self._deliver([self._key(item)], [item], lane), copy_context())

    async def settle(self, seconds: float) -> None:
        """Wait up to `seconds` for everything to be done."""
        ends_at = asyncio.get_running_loop().time() + seconds
        while self._running and (left := ends_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._running), timeout=left)
        if not self._ready and self._look_out is not None:
            self._look_out.cancel()
            self._look_out = None

    def _start(self) -> None:
        """Give a free lane to what is ready. It is taken only when the task runs: whoever else was just woken by the
        end of the last batch comes along."""
        if not self._ready:
            return
        if self._free < 1:
            if self._look_out is None:
                self._look_out = asyncio.get_running_loop().call_later(self._look_every, self._look)
            return
        _, context = self._waiting[next(iter(self._ready))][0]
        lane = object()
        self._take_lane(lane)
        self._launch(self._run(lane), context)

    def _take_lane(self, lane: object) -> None:
        self._free -= 1
        self._away_since[lane] = asyncio.get_running_loop().time()

    def _come_out(self, lane: Lane) -> None:
        self._running.discard(lane)
        lane.set_result(None)

    def _launch(self, work: Coroutine[Any, Any, None], context: Context) -> None:
        task = asyncio.create_task(work, name="group commit", context=context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, lane: object) -> None:
        keys, batch = self._take()
        self._alone = self._alone + 1 if len(batch) == 1 else 0
        self._start()  # there may be more than goes into one batch
        await self._deliver(keys, batch, lane)

    async def _run_aside(self, key: str) -> None:
        """Without a lane; what else has come of this key in the same turn of the loop goes along."""
        await self._deliver([key], [item for item, _ in self._waiting.pop(key)])

    async def _deliver(self, keys: Sequence[str], batch: Sequence[T], lane: object = None) -> None:
        try:
            try:
                left = await self._send(batch) if batch else None  # another lane may have taken all
            finally:
                self._give_back(lane)
            self._start()
            if left is not None:
                await left
        finally:
            self._release(keys)
            self._start()

    def _give_back(self, lane: object) -> None:
        """A lane is free for others, unless there was none, or another in its place already."""
        if self._away_since.pop(lane, None) is not None:
            self._free += 1

    def _look(self) -> None:
        self._look_out = None
        long_ago = asyncio.get_running_loop().time() - self._patience
        for lane in [lane for lane, since in self._away_since.items() if since <= long_ago]:
            self._give_back(lane)
        self._hurry([*self._ready])
        self._start()

    def _hurry(self, keys: Sequence[str]) -> None:
        """Let what cannot wait for a lane any more go without one."""
        hurried = [key for key in keys if key in self._ready and self._urgent(self._waiting[key][0][0])]
        if hurried:
            _, context = self._waiting[hurried[0]][0]
            batch = [item for key in hurried for item, _ in self._waiting.pop(key)]
            for key in hurried:
                del self._ready[key]
            self._busy.update(hurried)
            self._launch(self._deliver(hurried, batch), context)

    def _release(self, keys: Sequence[str]) -> None:
        if self._waiting:
            self._alone = 0
        for key in keys:
            self._busy.discard(key)
            if key in self._waiting:
                self._ready[key] = None
        if self._free < 1:
            self._hurry(keys)

    def _take(self) -> tuple[list[str], list[T]]:
        keys: list[str] = []
        batch: list[T] = []
        weight = 0
        while self._ready and len(batch) < self._limit and weight < self._max_weight:
            key = next(iter(self._ready))
            del self._ready[key]
            keys.append(key)
            self._busy.add(key)
            queue = self._waiting[key]
            while queue and len(batch) < self._limit and weight < self._max_weight:
                item, _ = queue.pop(0)
                batch.append(item)
                weight += self._weight(item)
            if not queue:
                del self._waiting[key]
        return keys, batch
