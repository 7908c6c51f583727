"""What a backend is: a LangGraph saver plus how to open, probe, classify errors of, and close it."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, ClassVar, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    CheckpointMetadata,
    CheckpointTuple,
    empty_checkpoint,
    get_checkpoint_id,
)

from enhanced_checkpointing.backends.listing import (
    HeadGatherer,
    HeadQuery,
    ThreadHead,
    ThreadRows,
    describe,
    find_heads,
    page_of,
)
from enhanced_checkpointing.backends.reading import Chunks, in_chunks
from enhanced_checkpointing.backends.stored_values import settled
from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointUnavailableError, redact
from enhanced_checkpointing.operations import (
    DeleteThread,
    Operation,
    Put,
    StoredWrite,
    apply_to_saver,
    asks_for_thread,
    checkpoint_id_of,
    namespace_of,
    operations_of,
    thread_of,
)
from enhanced_checkpointing.resilience.attempts import Answer, Attempt
from enhanced_checkpointing.resilience.failures import Failure, FailureKind
from enhanced_checkpointing.serialization import (
    Opaque,
    Serialized,
    SharingSerializer,
    has_large_integer,
    has_opaque,
    lost_types,
    plain_metadata,
    without_objects,
)

T = TypeVar("T")

_CREDENTIAL = re.compile(r"\b(?:user|username|uid|password|passwd|pwd)\s*=\s*(?:'[^']*'|[^\s&;]*)", re.IGNORECASE)

Heads = Mapping[str, Collection[str | None]]
"""For namespaces of a thread: which checkpoints may be the newest one there; None: there may be none."""

Judge = Callable[[str, CheckpointTuple | None], bool]
"""Says of a thread, by its newest root checkpoint, whether it is to go. It does no I/O, and may be called anywhere."""

INDEX_DEADLINES = 4
"""How many deadlines the setup spends on the index of a user's threads: nothing fails without it."""

PROBE_THREAD = "enhanced-checkpointing-probe"
"""The thread id under which the default probe writes and deletes."""


Metadata = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a thread's checkpoints, newest first: which ones, and how many."""

    matches: Callable[[Metadata], bool] = lambda _: True
    """Whether the metadata fits. Raises what the database says to this metadata with this filter."""
    below: Callable[[str], bool] = lambda _: True
    """Whether a checkpoint's id stands before the end of the other page."""
    limit: int | None = None
    """How many at most; None: all."""


EVERYTHING = Selection()


def plain(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """What databases agree on: texts in metadata, a checkpoint before which it is listed, a number of checkpoints.

    Raises:
        CheckpointUnavailableError: only the database knows what else it selects.
    """
    end = get_checkpoint_id(before) if before else None
    is_simple = isinstance(filter, dict) and all(
        key.isidentifier() and isinstance(value, str) for key, value in filter.items()
    )
    if (filter and not is_simple) or (before is not None and not end) or not (limit is None or limit > 0):
        raise CheckpointUnavailableError("only the primary knows what it selects by this filter, limit or `before`")
    return by_equality(filter, before, limit)


def by_equality(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
    """As LangGraph's memory selects: what is equal for Python is equal, and None stands for what is missing."""
    end = get_checkpoint_id(before) if before else None

    def matches(metadata: Metadata) -> bool:
        return not filter or all(value == metadata.get(key) for key, value in filter.items())

    return Selection(matches, lambda checkpoint_id: not end or checkpoint_id < end, limit)


class Backend:
    """Base class of backends, ours and third-party ones; register yours in the entry-point group
    `enhanced_checkpointing.backends` and name it in `CheckpointerConfig(checkpointer_type=…)`.

    A subclass must set `saver` by the time `open` returns. Everything else has a default that is right for a saver
    without connections to manage. All methods run on the manager's event loop.
    """

    name: ClassVar[str] = "backend"
    db_system: ClassVar[str] = "other_sql"
    """The value of the telemetry attribute `db.system.name`."""

    compares_heads: ClassVar[bool] = False
    """Whether `apply_all` can compare heads and write in one step, so that no other write comes in between."""

    lanes: ClassVar[int] = 0
    """How many batches of writes may be on their way at once. With 0 nothing is gathered: each write goes by itself, as
    many at a time as there are threads."""

    reads_everything: ClassVar[bool] = False
    """Whether `read_thread` tells the paths of tasks too, and the writes whose checkpoint is not there."""

    saver: BaseCheckpointSaver[Any]

    def __init__(self, config: CheckpointerConfig, serializer: SharingSerializer) -> None:
        self.config = config
        self.serializer = serializer
        self.unreadable: Mapping[str, str] = {}
        """Threads that listings have left out because their metadata is none, and why."""

    async def open(self) -> None:
        """Make `saver` usable without needing the database to be up.

        Raises:
            CheckpointerConfigurationError: something is wrong that waiting does not mend.
        """

    async def setup(self) -> None:
        """Create or migrate the tables, or only check them with `auto_setup=False`. The database must be up.

        Any number of processes may call this at the same time.
        """

    async def probe(self) -> None:
        """Prove that a write works now, leaving nothing behind; raise if it does not."""
        checkpoint = empty_checkpoint()
        config = {"configurable": {"thread_id": PROBE_THREAD, "checkpoint_ns": ""}}
        await self.saver.aput(config, checkpoint, {}, {})  # type: ignore[arg-type]  # RunnableConfig is a TypedDict
        await self.saver.adelete_thread(PROBE_THREAD)

    def classify(self, error: BaseException) -> Failure:
        """Say what an error of `saver`, `apply` or `probe` means for the data."""
        return classify_by_type(error)

    def check(self, operation: Operation) -> None:
        """Raise what the database would surely refuse, as `apply` would: called, without it, before an operation is
        acknowledged in an outage. Whatever is raised here is taken for the caller's fault."""
        if isinstance(operation, Put):
            self._check_numbers([*operation.values.values(), operation.metadata])

    def _check_numbers(self, values: Sequence[Any]) -> None:
        """Raise what the serializer raises for integers that MessagePack cannot hold."""
        for value in values:
            if has_large_integer(value):
                self.serializer.inner.dumps_typed(value)

    def freeze(self, value: Any) -> Any:
        """A channel's value in the form in which `saver` gives it back: itself if it is immutable and small, else its
        bytes. Pure."""
        return self.serializer.freeze(value)

    def form_of_metadata(self, metadata: CheckpointMetadata) -> CheckpointMetadata:
        """Metadata in the form in which `saver` gives it back. Pure."""
        return metadata

    def from_journal(self, operation: Operation) -> Operation:
        """An operation from the journal, whose objects an older release kept in another form than `freeze` gives."""
        if not isinstance(operation, Put) or not has_opaque([*operation.values.values(), operation.metadata]):
            return operation
        made = {name: self.freeze(value) for name, value in operation.values.items() if type(value) is Opaque}
        metadata = self.form_of_metadata(operation.metadata)
        return replace(operation, values={**operation.values, **made}, metadata=metadata)

    def lost_types(self, operation: Operation) -> Collection[str]:
        """The types whose objects this backend would store as something else for good, as it needs live values and the
        serializer does not make them: such an operation waits in the journal."""
        if isinstance(operation, DeleteThread):
            return ()
        values = operation.values.values() if isinstance(operation, Put) else [value for _, value in operation.writes]
        kept = [value for value in values if type(value) is Serialized]
        return sorted({name for value in kept for name in lost_types(value, self.serializer)})

    @staticmethod
    def selection(filter: Mapping[str, Any] | None, before: RunnableConfig | None, limit: int | None) -> Selection:
        """What `saver` would list of a thread with these arguments of `list`. Pure.

        Raises:
            CheckpointUnavailableError: only the database knows.
            Exception: what the saver raises for such arguments.
        """
        return plain(filter, before, limit)

    @staticmethod
    def write_that_stays(before: StoredWrite, after: StoredWrite, *, special: bool) -> StoredWrite:
        """Which of two writes of one task stays where there is room for one; `special`: all writes of the later call
        are to channels such as that of errors. Pure."""
        return after if after[1] in WRITES_IDX_MAP else before

    def database_id(self) -> str:
        """Which database this is, for people and for the journal: what was acknowledged for one is never drained into
        another. It says neither user nor password, and does not change when they do.

        The default tells databases apart without naming them.
        """
        where = self.config.connection_string
        text = _without_credentials(where.get_secret_value()) if where else str(self.config.database_path)
        return f"{self.name}:{blake2b(text.encode(errors='backslashreplace'), digest_size=8).hexdigest()}"

    async def apply(self, operation: Operation) -> None:
        """Commit one operation; it is durable when this returns."""
        await apply_to_saver(self.saver, operation, self.serializer)

    async def apply_batch(self, operations: Sequence[Operation]) -> None:
        """Commit operations of any threads, those of one thread in their order: all of them, or after an error none.

        Only a backend with `lanes` is given more than one at a time.
        """
        for operation in operations:
            await self.apply(operation)

    def lone(self, operation: Operation, attempt: Attempt) -> Answer | None:
        """Prepare to commit one operation as `apply_batch` would, by a thread of the backend's own and without a task;
        None: not now, or not by this backend. What is wrong with the operation is for `apply_batch` to say."""
        return None

    async def apply_all(self, operations: Sequence[Operation], heads: Heads) -> bool:
        """Commit operations of one thread in their order, as one step where that is possible.

        False: in one of the namespaces of `heads` the newest checkpoint is another one, and nothing was written. Only a
        backend that `compares_heads` looks at them, in the same step. After an error any of the first operations may
        be there.
        """
        for operation in operations:
            await self.apply(operation)
        return True

    async def ask(self, question: Callable[[BaseCheckpointSaver[Any]], Awaitable[T]]) -> T:
        """Call methods of the saver that `question` is given; maintenance, and all reads but `get`, come this way."""
        return await question(self.saver)

    async def get(self, config: RunnableConfig) -> tuple[CheckpointTuple | None, bool]:
        """The checkpoint that a config asks for; and if that is None, whether its thread has any other after all.

        The latter is looked for only where it was the newest of the root graph: with `durability="exit"` that is stored
        last, so a process may die when its subgraphs have stored theirs.
        """

        async def fetch(saver: BaseCheckpointSaver[Any]) -> tuple[CheckpointTuple | None, bool]:
            found = await saver.aget_tuple(config)
            if found is not None or not asks_for_thread(config):
                return found, found is not None
            whole: RunnableConfig = {"configurable": {"thread_id": thread_of(config)}}
            with without_objects():
                return None, bool([other async for other in saver.alist(whole, limit=1)])

        return await self.ask(fetch)

    def never_waits(self) -> bool:
        """Whether no call ever waits for anything, so that it needs no task to bound it, and no warm copy."""
        return False

    def blob(self, thread_id: str, checkpoint_ns: str, channel: str, version: str | int | float) -> Serialized | None:
        """The bytes of one version of a channel, from a backend that `never_waits`, if it has them."""
        return None

    def saver_type(self) -> type[BaseCheckpointSaver[Any]]:
        """The class of the saver: it tells which maintenance methods there are."""
        return type(self.saver)

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        """The first `limit` ids, behind `after`, of the threads that have a checkpoint, in the database's own order.

        The default reads every checkpoint.
        """

        async def fetch(saver: BaseCheckpointSaver[Any]) -> set[str]:
            with without_objects():
                return {thread_of(found.config) async for found in saver.alist(None)}

        known = await self.ask(fetch)
        return sorted(thread_id for thread_id in known if after is None or thread_id > after)[:limit]

    async def heads(self, query: HeadQuery) -> Sequence[ThreadHead]:
        """The threads that are asked for, newest first.

        The default reads every checkpoint.
        """
        return page_of(await self._heads_of([None]), query)

    async def describe(self, thread_ids: Sequence[str]) -> Sequence[ThreadHead]:
        """The heads of these threads, in their order, without those that have no checkpoint.

        The default reads every checkpoint of theirs.
        """
        wanted: list[RunnableConfig | None] = [
            {"configurable": {"thread_id": thread_id}} for thread_id in dict.fromkeys(thread_ids)
        ]
        return await self._heads_of(wanted)

    async def _heads_of(self, configs: Sequence[RunnableConfig | None]) -> list[ThreadHead]:
        async def fetch(saver: BaseCheckpointSaver[Any]) -> list[ThreadHead]:
            gatherer = HeadGatherer(self.serializer)
            with without_objects():
                for config in configs:
                    async for found in saver.alist(config):
                        gatherer.add(found)
            return gatherer.heads()

        return await self.ask(fetch)

    async def has_thread_index(self) -> bool:
        """Whether the database finds the newest threads of a user without looking at those of others."""
        return True

    async def make_thread_index(self, seconds: float | None = None) -> bool:
        """Make that index, in at most so many seconds; False if it is not there then, of which `notes` say why."""
        return True

    def read_thread(self, thread_id: str) -> Chunks:
        """The operations that, applied in their order, make a thread again in any database: values with the bytes that
        they are stored as, oldest first in each namespace, a few at a time so that memory stays flat.

        The default makes live values of them, and reads each checkpoint by itself. It sees neither the paths of tasks,
        though their order, nor writes whose checkpoint is not there.
        """
        return in_chunks(self._read_live(thread_id))

    async def _read_live(self, thread_id: str) -> AsyncGenerator[Sequence[Operation], None]:
        whole: RunnableConfig = {"configurable": {"thread_id": thread_id}}

        async def list_all(saver: BaseCheckpointSaver[Any]) -> Sequence[RunnableConfig]:
            with without_objects():
                return [found.config async for found in saver.alist(whole)]

        def place(config: RunnableConfig) -> tuple[str, str]:
            return namespace_of(config), str(checkpoint_id_of(config))

        for config in sorted(await self.ask(list_all), key=place):
            with without_objects():
                found, _ = await self.get(config)
                put, *writes = operations_of(found, self.serializer) if found is not None else (None,)
            if isinstance(put, Put):
                values = {channel: settled(value, self.serializer) for channel, value in put.values.items()}
                yield [replace(put, values=values), *writes]

    async def annotate(self, thread_id: str, changes: Mapping[str, Any]) -> bool:
        """Put these keys into the metadata of the newest root checkpoint, as it is then, and change nothing else of it;
        False if there is none. Values are plain JSON.

        The default puts that checkpoint again, which is no one step: who deletes the thread meanwhile must do so again.
        """

        async def put_again(saver: BaseCheckpointSaver[Any]) -> bool:
            with without_objects():
                found = await saver.aget_tuple(_newest_of(thread_id))
                if found is None:
                    return False
                put, *_ = operations_of(found, self.serializer)
                assert isinstance(put, Put)
                metadata = cast("CheckpointMetadata", {**plain_metadata(put.metadata, self.serializer), **changes})
                await self.apply(replace(put, metadata=metadata, new_versions={}))
            return True

        return await self.ask(put_again)

    async def delete_if(self, thread_ids: Sequence[str], judge: Judge) -> Sequence[str]:
        """Delete those threads of which `judge` says so; returns which went.

        In ours it is one step: nothing is deleted that was not there when `judge` was asked. The default asks and then
        deletes.
        """

        async def fetch(saver: BaseCheckpointSaver[Any], thread_id: str) -> CheckpointTuple | None:
            with without_objects():
                return await saver.aget_tuple(_newest_of(thread_id))

        gone: list[str] = []
        for thread_id in thread_ids:
            if judge(thread_id, await self.ask(partial(fetch, thread_id=thread_id))):
                await self.apply(DeleteThread(thread_id))
                gone.append(thread_id)
        return gone

    async def prune_thread(self, thread_id: str, keep: int) -> int:
        """Keep the newest checkpoints of each namespace of a thread, and what these need; returns how many went.

        Raises:
            NotImplementedError: the saver cannot.
        """

        async def prune(saver: BaseCheckpointSaver[Any]) -> int:
            own: Callable[..., Awaitable[int]] | None = getattr(saver, "aprune_thread", None)
            if own is None:
                raise NotImplementedError(f"a {type(saver).__name__} cannot keep a number of checkpoints of a thread")
            return await own(thread_id, keep=keep)

        return await self.ask(prune)

    @asynccontextmanager
    async def sole(self, name: str) -> AsyncIterator[bool]:
        """For as long as it is open: whether this is the only one, of all processes, that does what the name says.

        The default knows of no other process.
        """
        yield True

    async def renew(self) -> None:
        """Drop what an outage left stale; called after a probe passed, before live calls come back."""

    async def scrub(self) -> Sequence[str]:
        """Leave nothing in the files of the database of what was deleted; returns what remains all the same, and why.

        The default cleans nothing.
        """
        return ["what the database's own files keep of deleted rows: this backend cannot clean them"]

    async def fence(self, thread_id: str) -> bool:
        """Make sure that no attempt left behind can still write to a thread; False if one still may."""
        return True

    def saturated(self) -> bool:
        """Whether every connection is busy with our own calls."""
        return False

    def gauges(self) -> dict[str, int]:
        """Sizes for the metrics `checkpointer.pool.*`."""
        return {}

    def notes(self) -> dict[str, Any]:
        """What an operator may want to know of this backend: plain JSON types, no secrets."""
        return {}

    async def close(self) -> None:
        """Give everything back; bounded, and safe to call twice or without `open`."""


class TablesBackend(Backend):
    """A backend that reads and writes its tables itself: every write is a batch, and listings use an index."""

    _threads: ThreadRows

    async def apply(self, operation: Operation) -> None:
        await self.apply_batch([operation])

    async def thread_ids(self, after: str | None, limit: int) -> Sequence[str]:
        return await self._threads.thread_ids(after, limit)

    async def heads(self, query: HeadQuery) -> Sequence[ThreadHead]:
        return await find_heads(self._threads, query)

    async def describe(self, thread_ids: Sequence[str]) -> Sequence[ThreadHead]:
        return await describe(self._threads, thread_ids)


def _newest_of(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def _without_credentials(connection_string: str) -> str:
    """A URL without the part in front of the `@`, and any string without pairs that name a user or a secret."""
    text = re.sub(r"://[^/?#]*@", "://", redact(connection_string))
    return _CREDENTIAL.sub("", text)


def classify_by_type(error: BaseException) -> Failure:
    """The classification of errors that carry nothing but their type."""
    if isinstance(error, ConnectionRefusedError):
        return Failure(FailureKind.OUTAGE, error)
    if isinstance(error, (OSError, TimeoutError)):
        return Failure(FailureKind.UNKNOWN, error)
    return Failure(FailureKind.DATA, error, answered=True)
