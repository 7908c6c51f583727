"""START HERE: opens everything in one place, in order, and hands out the saver; closes it in reverse.

settings -> config -> backend -> journal -> breaker, guard -> standby -> engine -> saver    (upkeep/assembly.py)
                      prober, reconciler run beside them, in one task group                  (upkeep/lifecycle.py)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing.audit import Notes
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.companions import Companions
from enhanced_checkpointing.config import CheckpointerConfig, ProfileOverrides, hide_secrets
from enhanced_checkpointing.errors import CheckpointerConfigurationError, CheckpointerError
from enhanced_checkpointing.identifiers import text_of, with_text_ids
from enhanced_checkpointing.journal.opening import open_journal
from enhanced_checkpointing.observability import health
from enhanced_checkpointing.observability.events import Broadcast, Gauges, Notice, Telemetry
from enhanced_checkpointing.observability.log import LoggingSink
from enhanced_checkpointing.observability.otel import OpenTelemetrySink
from enhanced_checkpointing.ownership import asking
from enhanced_checkpointing.saver.event_loop import LoopHost
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.settings import CheckpointerSettings
from enhanced_checkpointing.threads.methods import ThreadComponents, ThreadMethods
from enhanced_checkpointing.tombstones import Tombstones
from enhanced_checkpointing.upkeep import lifecycle
from enhanced_checkpointing.upkeep.assembly import assemble, background
from enhanced_checkpointing.upkeep.components import Components
from enhanced_checkpointing.upkeep.lifecycle import Supervisor

TURN_SECONDS = 0.01
"""Pause between two looks whether another start or stop of the same manager has ended."""


class EnhancedCheckpointerManager(ThreadMethods):
    """Owns a checkpointer and everything behind it.

    Use `await initialize()` and `await cleanup()`, from any tasks, or `async with`. In a program without an event loop
    use `with`: the manager then runs a loop of its own in a thread, as it also does with `enable_async=False`.
    """

    def __init__(self, config: CheckpointerConfig | None = None, *, logger_service: object | None = None) -> None:
        self.config = config if config is not None else CheckpointerSettings().to_config()
        keeps_writes = self.config.journal != "off" and self.config.on_outage == "journal"
        self._telemetry = Broadcast([LoggingSink(logger_service, keeps_writes=keeps_writes), OpenTelemetrySink()])
        self._companions = Companions()
        self._components: Components | None = None
        self._supervisor: Supervisor[Components] | None = None
        self._host = LoopHost()
        self._changing = threading.Lock()

    # Life

    async def initialize(self) -> bool:
        """Open everything; return True if the primary takes writes now.

        With the database down this still succeeds, degraded, and sets it up later by itself, unless
        `require_primary=True`. Calling it again does nothing.

        Raises:
            CheckpointerConfigurationError: something is wrong that waiting does not mend.
            CheckpointUnavailableError: the primary is down, and `require_primary=True`.
        """
        async with self._alone():
            if self._supervisor is not None and self._supervisor.is_ending:
                await self._host.bring(self._end)  # an earlier cleanup was cancelled
            if self.config.enabled and self._components is None:
                self._host.move_in(own_loop=not self.config.enable_async)
                try:
                    await self._host.bring(self._start)
                except BaseException:
                    self._host.move_out()
                    raise
        return self._primary_healthy

    async def cleanup(self) -> None:
        """Stop taking calls, drain what can be drained within `shutdown_grace` seconds, close everything.

        Calling it again, or at the same time, or without `initialize`, is harmless. What stays in the journal is
        logged with its count. In a forked child it does nothing: all that is open is the parent's.
        """
        if self._host.is_inherited:
            return
        async with self._alone():
            try:
                await self._host.bring(self._end)
            finally:
                if self._host.move_out():  # nothing is left of what ran on a loop of our own
                    self._supervisor = None
            await self._close_companions()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cleanup()

    def __enter__(self) -> Self:
        if self.config.enabled:
            self._host.move_in(own_loop=True)
            try:
                self._host.wait(self._start)
            except BaseException:
                self._host.move_out()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not (self._host.is_left or self._host.is_inherited):
            try:
                self._host.wait(self._end)
                self._host.wait(self._close_companions)
            finally:
                self._host.move_out()

    # What it hands out

    def get_checkpointer(self) -> BaseCheckpointSaver[str] | None:
        """The saver to compile graphs with; None if `enabled=False`, so that they run without persistence.

        Raises:
            CheckpointerError: the manager is not initialized.
        """
        return self.components.saver if self.config.enabled else None

    def create_thread_config(
        self,
        thread_id: str | None = None,
        *,
        user_id: str | None = None,
        shared_with: Collection[str] | None = None,
        new: bool = False,
        **configurable: Any,
    ) -> RunnableConfig:
        """A config for `graph.invoke`. Without a `thread_id` one is made, ordered by time.

        `new=True` promises that the thread does not exist yet, so that it can start during an outage too. `user_id` and
        whatever else is given goes into `configurable`, and by LangGraph's rules into each checkpoint's metadata.

        A thread that begins with a `user_id` belongs to that user. Every call with the config of another user is
        refused with `CheckpointNotFoundError`, unless the thread is `shared_with` that one. Only its owner's config
        changes whom it is shared with: None leaves that as it is, an empty list ends it. See `thread_ownership`.

        Raises:
            InvalidIdError: an id is neither a text nor a number, UUID or enum's member, whose text it then is; or its
                text has more than 4 KiB, NUL or half of a character, and so would not be stored as it is.
            CheckpointerError: `shared_with` is a text, where a list is asked for, or is given without `user_id`.
        """
        if thread_id is None:
            thread_id, new = str(uuid6()), True
        parts, known = self._components, text_of(thread_id, "thread_id")
        if new and parts is not None:
            self._host.tell(lambda: parts.engine.promise_new(known))
        user = asking(user_id, shared_with)
        return with_text_ids({"configurable": {**configurable, **user, "thread_id": known}})

    async def wait_drained(self, timeout: float) -> bool:
        """Wait until the journal is empty; False if `timeout` seconds were over before, or a thread is frozen."""
        parts = self.components
        if parts.reconciler is None:
            return True
        reconciler = parts.reconciler
        return await parts.bridge.bring(lambda: reconciler.wait_drained(timeout))

    def integrate(self, name: str, companion: object) -> bool:
        """Make the health of an object part of the report, and its life part of this manager's; False: it has none."""
        taken = self._companions.add(name, companion)
        if not taken:
            kind = type(companion).__name__
            self._telemetry.emit(
                Notice("WARNING", f"{name} is not integrated: a {kind} is no store and has no health_check or close")
            )
        return taken

    def listen(self, sink: Telemetry) -> None:
        """Send every call and event from now on to one more sink, as `observability/events.py` describes it."""
        self._telemetry.add(sink)

    # Health

    async def health_check(self) -> dict[str, Any]:
        """Probe the primary and the integrated objects, and report. Bounded by the deadline; never moves the breaker's
        state from open to closed, which is the prober's to do."""
        parts = self._components
        if parts is not None:
            await parts.bridge.bring(parts.prober.look)
        await self._companions.check(self.config.deadline)
        return self.health_status

    @property
    def health_status(self) -> dict[str, Any]:
        """The report as known now, without I/O: for readiness probes."""
        parts = self._components  # once: it may be closed meanwhile, in the thread of its own loop
        if parts is None:
            return health.report_closed(self._companions.reports, enabled=self.config.enabled)
        return parts.report(self.config, self._companions.reports)

    @property
    def dead_letters(self) -> list[dict[str, Any]]:
        """What the primary refused for good and the journal keeps, without I/O: of each operation its `thread_id`,
        `operation`, `journaled_at` (wall-clock seconds) and the primary's `error`, without secrets."""
        parts = self._components
        return parts.dead_letters() if parts is not None else []

    # Opening and closing, in order

    async def _start(self) -> None:
        supervisor = Supervisor(
            open_all=self._open,
            background=background,
            before_closing=lambda parts: lifecycle.last_drain(parts, self.config),
            telemetry=self._telemetry,
        )
        self._components = await supervisor.start()
        self._supervisor = supervisor

    async def _end(self) -> None:
        if self._supervisor is not None:
            await self._supervisor.end()
            self._supervisor = None

    async def _close_companions(self) -> None:
        for fault in await self._companions.close(lifecycle.SETTLE_SECONDS):
            self._telemetry.emit(Notice("WARNING", fault))

    async def _open(self, stack: AsyncExitStack) -> Components:
        config, telemetry = self.config, self._telemetry
        stack.callback(telemetry.close)
        serializer = SharingSerializer(config.serde, accept_unencrypted=config.accept_unencrypted)

        backend = find_backend(config.backend_name)(config, serializer)
        stack.push_async_callback(backend.close)
        await backend.open()

        journal = await open_journal(config, serializer, telemetry, home=backend.database_id())
        if journal is not None:
            stack.push_async_callback(journal.close)
            stack.callback(lifecycle.tell_backlog, journal, telemetry)

        self._components = await assemble(
            stack,
            config=config,
            backend=backend,
            journal=journal,
            serializer=serializer,
            telemetry=telemetry,
            note=Notes(config, backend.database_id(), telemetry),
            tombstones=Tombstones(
                config.journal_dir.absolute() if journal and journal.durable else None, backend.database_id()
            ),
        )
        stack.callback(self._forget_components)
        telemetry.observe(self._gauges)
        await lifecycle.first_contact(self._components, require_primary=config.require_primary)
        return self._components

    def _forget_components(self) -> None:
        self._components = None

    @property
    def components(self) -> Components:
        """All parts of the open manager, for diagnosis and for tests; their names may change in any release.

        Raises CheckpointerError where the manager is not open.
        """
        if self._components is None:
            raise CheckpointerError(
                "The checkpointer is not open; nothing was read or written. Call `await manager.initialize()` first, "
                "and use it before `cleanup()`."
            )
        return self._components

    @property
    def _threads(self) -> ThreadComponents:
        return self.components.threads

    @property
    def _primary_healthy(self) -> bool:
        return self._components.primary_healthy() if self._components is not None else not self.config.enabled

    def _gauges(self) -> Gauges:
        parts = self._components
        return parts.gauges() if parts is not None else Gauges()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Start and stop one at a time, whichever loops ask for it; a lock of asyncio would belong to one of them."""
        while not self._changing.acquire(blocking=False):  # noqa: ASYNC110  # an asyncio.Event has one loop too
            await asyncio.sleep(TURN_SECONDS)
        try:
            yield
        finally:
            self._changing.release()


async def initialize_enhanced_checkpointing(
    environment: Literal["development", "testing", "production"] | CheckpointerConfig | None = None,
    custom_config: CheckpointerConfig | None = None,
    logger_service: object | None = None,
    memory_manager: object | None = None,
    **overrides: Unpack[ProfileOverrides],
) -> EnhancedCheckpointerManager:
    """Open a checkpointer and return its manager: the one call that an application makes at start-up.

    Args:
        environment: the profile; None: from `CHECKPOINT_ENVIRONMENT`, else "development". A configuration, which people
            like to give first, is taken for `custom_config`.
        custom_config: wins over the environment.
        logger_service: takes the log lines instead of `logging`: an object with `info`, `warning` and `error`.
        memory_manager: a LangGraph store, or an object with `health_check` or `close`, to live beside it.
        overrides: fields of `CheckpointerConfig`.

    Raises:
        CheckpointerConfigurationError: a setting is wrong, or the primary refuses for a reason that does not pass.
        CheckpointUnavailableError: the primary is down, and `require_primary=True`.
    """
    hide_secrets(overrides)
    if isinstance(environment, CheckpointerConfig):
        if custom_config is not None:
            raise CheckpointerConfigurationError("There are two configurations: give one, first or as custom_config.")
        environment, custom_config = None, environment
    if custom_config is not None:
        config = custom_config.with_overrides(**overrides) if overrides else custom_config
    else:
        config = CheckpointerSettings().to_config(environment, **overrides)
    manager = EnhancedCheckpointerManager(config, logger_service=logger_service)
    await manager.initialize()
    if memory_manager is not None:
        integrate_with_memory_manager(manager, memory_manager)
    return manager


def integrate_with_memory_manager(manager: EnhancedCheckpointerManager, memory_manager: object) -> bool:
    """Let a LangGraph store, or an object with `health_check` or `close`, live beside the checkpointer.

    Its health becomes the part `memory_manager` of the report, and `cleanup()` closes it. False: it is neither.
    """
    return manager.integrate("memory_manager", memory_manager)
