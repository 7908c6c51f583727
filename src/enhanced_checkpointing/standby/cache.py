"""The standby: warm copies of recent threads, which answer reads while the primary cannot; and which threads may start
then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple, DeltaChannelHistory

from enhanced_checkpointing.backends.base import Backend, Selection
from enhanced_checkpointing.errors import quoted, redact
from enhanced_checkpointing.identifiers import created_at
from enhanced_checkpointing.journal.api import UNKNOWN, BaseHead
from enhanced_checkpointing.operations import (
    DeleteThread,
    Operation,
    Put,
    PutWrites,
    checkpoint_id_of,
    namespace_of,
    thread_of,
)
from enhanced_checkpointing.resilience.breaker import Clock
from enhanced_checkpointing.resilience.failures import not_warm
from enhanced_checkpointing.serialization import Serialized, SharingSerializer
from enhanced_checkpointing.standby.store import WriteThatStays
from enhanced_checkpointing.standby.thread import WarmThread

T = TypeVar("T")

EMPTY_REMEMBERED = 10_000
"""Threads of which it is remembered that they hold nothing, although there is no room for them."""

TOLD_REMEMBERED = 1_000
"""Threads of which it is remembered that they cannot be kept, so that each is told of once."""


class Watch:
    """Whether an answer that is on its way may still be kept; `overtaken_in`: the namespaces in which something was
    acknowledged since it was asked for, so that what is missing in it may be there."""

    __slots__ = ("__weakref__", "_read_by", "_serializer", "is_dropped", "overtaken_in")

    def __init__(self, serializer: SharingSerializer) -> None:
        self._serializer, self._read_by = serializer, serializer.inner
        self.is_dropped = False
        self.overtaken_in: set[str] = set()

    @property
    def is_stale(self) -> bool:
        """Whether what was known was dropped meanwhile, or the allow-list widened."""
        return self.is_dropped or self._read_by is not self._serializer.inner


class Standby:
    """Keeps the least recently used threads out, by bytes; a thread for which `pinned` is true never leaves. Whoever
    unpins it releases it. Of one that is too large by itself, the newest checkpoints stay.

    It answers only what it knows for certain, and raises `CheckpointUnavailableError` for all else. `warn` hears of it
    when the threads that never leave need more room than there is, and of a thread that cannot be kept.
    """

    def __init__(
        self,
        serializer: SharingSerializer,
        max_bytes: int,
        pinned: Callable[[str], bool],
        warn: Callable[[str], None] = lambda _: None,
        write_that_stays: WriteThatStays = Backend.write_that_stays,
    ) -> None:
        self._serializer = serializer
        self._write_that_stays = write_that_stays
        self._max_bytes = max_bytes
        self._pinned = pinned
        self._warn = warn
        self._warned = False
        self._told: OrderedDict[str, None] = OrderedDict()
        """The last threads that were told of as not to be kept."""
        self._threads: dict[str, WarmThread] = {}
        self._leaving: OrderedDict[str, None] = OrderedDict()
        """The order in which threads leave. One that was found pinned when it was to leave is not here until it is used
        again or released, so that room is made without looking at it each time."""
        self._empty: OrderedDict[str, None] = OrderedDict()
        """Threads that had to leave and hold nothing: that much is remembered of the last ones."""
        self._size = 0
        self._watches: WeakValueDictionary[str, Watch] = WeakValueDictionary()

    def watch(self, thread_id: str) -> Watch:
        """Tells a read, for as long as it holds it, whether anything of its thread was dropped meanwhile."""
        watch = self._watches.get(thread_id)
        if watch is None:
            watch = self._watches[thread_id] = Watch(self._serializer)
        return watch

    @property
    def size(self) -> int:
        """Bytes held, about."""
        return self._size

    def __len__(self) -> int:
        return len(self._threads)

    def blob(self, thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        """The bytes of one version of a channel, if they are warm."""
        thread = self._threads.get(thread_id)
        if thread is None or thread.is_outdated:
            return None
        return thread.blob((thread_id, checkpoint_ns, channel, version))

    def base_head(self, operation: Operation) -> BaseHead:
        """The newest checkpoint that this process knows of in the namespace that an operation changes."""
        if operation.thread_id in self._empty:
            return None
        thread = self._threads.get(operation.thread_id)
        checkpoint_ns = "" if isinstance(operation, DeleteThread) else operation.checkpoint_ns
        if thread is None or not thread.knows_head(checkpoint_ns):
            return UNKNOWN
        return thread.head(checkpoint_ns)

    def thread_ids(self) -> list[str]:
        """The threads for which `knows` is true."""
        return [*self._threads, *self._empty]

    def knows(self, thread_id: str) -> bool:
        """Whether anything of a thread is warm, or it is known to be empty."""
        return thread_id in self._threads or thread_id in self._empty

    def note_own(self, operation: Put | PutWrites) -> None:
        """This process has made something of a thread, which is not acknowledged yet. A cold thread stays cold."""
        if (thread := self._threads.get(operation.thread_id)) is not None:
            thread.authorship.note_own(operation)

    def note_refused(self, operation: Operation) -> None:
        """What this process had made was not acknowledged: if it is stored all the same, it is as if others had."""
        if isinstance(operation, DeleteThread):
            return
        if (thread := self._threads.get(operation.thread_id)) is not None:
            thread.note_refused(operation)

    def apply(self, operation: Operation) -> None:
        """Take an operation that was acknowledged."""
        if isinstance(operation, DeleteThread):
            self.forget(operation.thread_id)
            self.note_empty(operation.thread_id, "")
            return
        if (watch := self._watches.get(operation.thread_id)) is not None:
            watch.overtaken_in.add(operation.checkpoint_ns)
        thread = self._touch(operation.thread_id)
        before = thread.store.size  # which is all of a thread that grows by it
        try:
            if isinstance(operation, Put):
                thread.put(operation)
            elif thread.put_writes(operation):
                self._tell_of_drop(operation.thread_id)  # what a read brings now may be what this has replaced
        finally:
            self._grown(thread.store.size - before)

    def keep(self, operation: Operation) -> None:
        """Take an operation that was acknowledged. What cannot be held makes the thread cold, and no write fail."""
        try:
            self.apply(operation)
        except Exception as error:  # noqa: BLE001  # whatever a serializer raises for what the primary could take
            self._cannot_hold(operation.thread_id, error)

    def _cannot_hold(self, thread_id: str, error: Exception) -> None:
        self.forget(thread_id)
        if thread_id not in self._told:
            self._told[thread_id] = None
            if len(self._told) > TOLD_REMEMBERED:
                self._told.popitem(last=False)
            self._warn(f"thread {quoted(thread_id)} cannot be kept warm ({redact(error)}): in an outage it is not read")

    def warm(self, config: RunnableConfig, found: CheckpointTuple | None, *, blank: bool = True) -> None:
        """Take the primary's answer to a read. What cannot be held makes the thread cold, and no read fail.

        `blank`: a thread of which no root checkpoint was found has no other either.
        """
        try:
            self._warm(config, found, blank=blank)
        except Exception as error:  # noqa: BLE001  # likewise
            self._cannot_hold(thread_of(config), error)

    def _warm(self, config: RunnableConfig, found: CheckpointTuple | None, *, blank: bool) -> None:
        newest = checkpoint_id_of(config) is None
        if found is None:
            if newest:
                self._note_nothing(thread_of(config), namespace_of(config), blank=blank)
            return
        thread = self._touch(thread_of(config))
        before = thread.size
        try:
            thread.warm(found, newest=newest, newer=self._overtaken_in(thread_of(config)))
        finally:
            self._grown(thread.size - before)

    def _note_nothing(self, thread_id: str, checkpoint_ns: str, *, blank: bool) -> None:
        """The primary has nothing in a namespace. What is warm of it was deleted by somebody else, unless it is newer
        than that answer."""
        thread = self._threads.get(thread_id)
        is_gone = thread is not None and thread.head(checkpoint_ns) is not None
        if is_gone and not self._overtaken_in(thread_id):
            self.forget(thread_id)
        self.note_empty(thread_id, checkpoint_ns, blank=blank)

    def warm_listing(
        self, config: RunnableConfig, listed: Sequence[CheckpointTuple], *, newest: bool, whole: bool
    ) -> None:
        """Take what the primary listed of one thread: what was seen in it does not go backwards. A cold thread stays
        cold. As `warm` does."""
        thread_id, checkpoint_ns = thread_of(config), config["configurable"].get("checkpoint_ns")
        thread, newer = self._threads.get(thread_id), self._overtaken_in(thread_id)
        if thread is None:
            return
        whole = whole and not newer
        before = thread.size
        try:
            is_there = thread.compare(
                listed,
                newest=newest,
                newer=newer,
                whole_of=(lambda name: checkpoint_ns in (None, name)) if whole else None,
            )
        except Exception as error:  # noqa: BLE001  # likewise
            self._cannot_hold(thread_id, error)
            return
        self._grown(thread.size - before)
        if not is_there:
            self.forget(thread_id)

    def warm_history(self, config: RunnableConfig, found: Mapping[str, DeltaChannelHistory]) -> None:
        """Take the primary's answer about delta channels of one named checkpoint; as `warm` does."""
        try:
            self._warm_history(config, found)
        except Exception as error:  # noqa: BLE001  # likewise
            self._cannot_hold(thread_of(config), error)

    def _warm_history(self, config: RunnableConfig, found: Mapping[str, DeltaChannelHistory]) -> None:
        checkpoint_id = checkpoint_id_of(config)
        if checkpoint_id is None:
            return
        thread = self._touch(thread_of(config))
        before = thread.size
        try:
            thread.warm_history(namespace_of(config), checkpoint_id, found)
        finally:
            self._grown(thread.size - before)

    def note_empty(self, thread_id: str, checkpoint_ns: str, *, blank: bool = True) -> None:
        """A namespace is known to hold nothing; the root namespace of a `blank` thread: a thread."""
        thread = self._touch(thread_id)
        before = thread.size
        thread.note_empty(checkpoint_ns, blank=blank)
        self._grown(thread.size - before)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._answer(config, lambda thread: thread.get_tuple(config))

    def history(self, config: RunnableConfig, selection: Selection) -> Iterator[CheckpointTuple | None]:
        """Newest first. Each is made when it is taken, with None for one that does not match."""
        return self._answer(config, lambda thread: thread.history(config, selection))

    def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, DeltaChannelHistory]:
        return self._asked(config).delta_history(config, channels)

    def release(self, thread_id: str) -> None:
        """A thread is not pinned any more: it may leave like the others."""
        if thread_id in self._threads:
            self._leaving.setdefault(thread_id)
            self._grown(0)

    def doubt(self, thread_id: str) -> None:
        """What is warm of a thread is right, and may be not all there is."""
        thread = self._threads.get(thread_id)
        if thread is None or thread.is_blank:
            self.forget(thread_id)
            return
        before = thread.size
        thread.doubt()
        self._grown(thread.size - before)

    def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> None:
        """The metadata of the newest root checkpoint was changed at the primary."""
        if (thread := self._threads.get(thread_id)) is not None:
            before = thread.size
            thread.annotate(changes)
            self._grown(thread.size - before)

    def forget(self, thread_id: str) -> None:
        """Drop what is warm of a thread, after something else than this saver changed it."""
        self._empty.pop(thread_id, None)
        self._drop(thread_id)

    def forget_all(self, thread_ids: Sequence[str] | None) -> None:
        """Drop what is warm of these threads, or of all but the pinned ones for None."""
        for thread_id in list(self._watches) if thread_ids is None else thread_ids:
            self._tell_of_drop(thread_id)
        for thread_id in [*self._threads, *self._empty] if thread_ids is None else thread_ids:
            if not self._pinned(thread_id):
                self.forget(thread_id)

    def _answer(self, config: RunnableConfig, ask: Callable[[WarmThread], T]) -> T:
        """What a thread says, which may learn by it that a namespace is empty."""
        thread = self._asked(config)
        before = thread.size
        try:
            return ask(thread)
        finally:
            if self._threads.get(thread_of(config)) is thread:
                self._grown(thread.size - before)

    def _asked(self, config: RunnableConfig) -> WarmThread:
        thread_id = thread_of(config)
        if thread_id in self._empty:
            self._empty.move_to_end(thread_id)
            return self._new(thread_id)
        thread = self._current(thread_id)
        if thread is None or thread.is_outdated:
            raise not_warm(thread_id)
        self._use(thread_id)
        return thread

    def _new(self, thread_id: str) -> WarmThread:
        thread = WarmThread(thread_id, self._serializer, self._write_that_stays)
        if thread_id in self._empty:
            thread.note_empty("")
        return thread

    def _current(self, thread_id: str) -> WarmThread | None:
        """A thread, but for one that is outdated and may go: it is read anew."""
        thread = self._threads.get(thread_id)
        if thread is not None and thread.is_outdated and not self._pinned(thread_id):
            self.forget(thread_id)
            return None
        return thread

    def _touch(self, thread_id: str) -> WarmThread:
        thread = self._current(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = self._new(thread_id)
            self._empty.pop(thread_id, None)
            self._size += thread.size
        self._use(thread_id)
        return thread

    def _use(self, thread_id: str) -> None:
        self._leaving[thread_id] = None
        self._leaving.move_to_end(thread_id)

    def _drop(self, thread_id: str) -> None:
        thread = self._threads.pop(thread_id, None)
        if thread is not None:
            self._leaving.pop(thread_id, None)
            self._size -= thread.size
        self._tell_of_drop(thread_id)

    def _grown(self, by: int) -> None:
        self._size += by
        while self._size > self._max_bytes and self._leaving:
            thread_id, _ = self._leaving.popitem(last=False)
            if not self._pinned(thread_id):
                thread = self._threads[thread_id]
                if not (self._leaving or thread.is_blank) and self._trimmed(thread):
                    self._use(thread_id)
                    break
                self._drop(thread_id)
                self._remember_empty(thread_id, thread)
        if self._size > self._max_bytes and not self._warned:
            self._warn(
                f"the warm copy needs {self._size:,} bytes for the threads that wait in the journal, more than the "
                f"{self._max_bytes:,} of CHECKPOINT_STANDBY_MAX_BYTES: all other threads are cold until that is drained"
            )
        self._warned = self._size > self._max_bytes

    def _trimmed(self, thread: WarmThread) -> bool:
        """Drop the history of the last thread that is left to leave, which is in use; False if that is not enough."""
        before = thread.size
        thread.trim()
        self._size += thread.size - before
        return self._size <= self._max_bytes

    def _remember_empty(self, thread_id: str, thread: WarmThread) -> None:
        if thread.complete and thread.is_blank:
            self._empty[thread_id] = None
            if len(self._empty) > EMPTY_REMEMBERED:
                self._empty.popitem(last=False)

    def _overtaken_in(self, thread_id: str) -> Collection[str]:
        """The namespaces in which something was acknowledged since a read that is still on its way was asked for."""
        watch = self._watches.get(thread_id)
        return watch.overtaken_in if watch is not None else ()

    def _tell_of_drop(self, thread_id: str) -> None:
        """What was known when a read began is gone: its answer may be older than what was dropped."""
        watch = self._watches.pop(thread_id, None)
        if watch is not None:
            watch.is_dropped = True


class NewThreads:
    """Knows when the primary answered last: a thread whose id is younger than that cannot be there.

    A thread that was only taken for new, by its id or because that is allowed, is forgotten as soon as the primary can
    be asked: `held` tells of a thread that waits to be drained before. `begins` tells whether no other worker on this
    machine can have written to a thread that is so many seconds old.
    """

    def __init__(
        self,
        standby: Standby,
        *,
        start_fresh: bool,
        wall_clock: Clock,
        held: Callable[[str], bool] = lambda _: False,
        begins: Callable[[str, float | None], bool] = lambda thread_id, age: True,
    ) -> None:
        self._standby = standby
        self._start_fresh = start_fresh
        self._wall_clock = wall_clock
        self._held = held
        self._begins = begins
        self._last_contact: float | None = None
        self._presumed: set[str] = set()

    def contact(self) -> None:
        """The primary answered. The newest time counts: a clock that jumps back must not make old threads look new."""
        now = self._wall_clock()
        self._last_contact = now if self._last_contact is None else max(self._last_contact, now)

    def admit(self, thread_id: str, *, outage: bool) -> None:
        """Take a thread that this process never saw for empty, if its id proves it, or if that is allowed and there is
        an `outage` for certain: one call that came late is none, and what it asked for may well be there. What the
        journal holds is not new, although it may not be readable."""
        if self._standby.knows(thread_id) or self._held(thread_id):
            return
        if self.would_admit(thread_id, outage=outage) and self._begins(thread_id, self._age(thread_id)):
            self._presumed.add(thread_id)
            self._standby.note_empty(thread_id, "")

    def would_admit(self, thread_id: str, *, outage: bool) -> bool:
        """Whether a thread could begin now, as far as its id and the setting tell."""
        return (self._start_fresh and outage) or self._age(thread_id) is not None

    def recovered(self) -> None:
        """The primary can be asked again: what was presumed of threads is not known any more."""
        for thread_id in [thread_id for thread_id in self._presumed if not self._held(thread_id)]:
            self._presumed.discard(thread_id)
            self._standby.forget(thread_id)

    def presumes(self, thread_id: str) -> bool:
        """Whether a thread was only taken for empty: nobody has looked."""
        return thread_id in self._presumed

    def drained(self, thread_id: str) -> None:
        """Everything of a thread is in the primary. If something was there before, the warm copy is gone by now; else
        the newest of what is warm is the newest there is, and there may be more."""
        if thread_id in self._presumed:
            self._presumed.discard(thread_id)
            self._standby.doubt(thread_id)

    def _age(self, thread_id: str) -> float | None:
        """Seconds since a thread was made, if its id proves that this was after the last contact. An id from the future
        proves nothing: the clock that made it is not ours."""
        made_at = created_at(thread_id)
        if made_at is None or self._last_contact is None:
            return None
        now = self._wall_clock()
        return now - made_at if self._last_contact < made_at <= now else None
