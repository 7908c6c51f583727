"""Which database a command works with, opened without a manager: nothing is taken over, drained or set up."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from langgraph.checkpoint.serde.base import SerializerProtocol

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.backends.registry import find_backend
from enhanced_checkpointing.backends.sqlite.file import ORPHANED_LOG_FIX, orphan_text, orphaned_log
from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.output import UsageError
from enhanced_checkpointing.config import CheckpointerConfig, CheckpointerType, create_memory_checkpointer
from enhanced_checkpointing.errors import CheckpointerConfigurationError, CheckpointerError, redact
from enhanced_checkpointing.observability.events import Broadcast, Telemetry
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer

T = TypeVar("T")

SETTLE_SECONDS = 1.0
"""How long what was left behind is given to end, before the command ends without it."""


class Primary:
    """An open backend behind a guard, so that no question to it takes longer than it may."""

    def __init__(self, backend: Backend, telemetry: Telemetry) -> None:
        self.backend = backend
        self._guard = Guard(
            backend.name,
            breaker=Breaker(time.monotonic, BreakerSettings(), lambda opened, reason: None),
            classify=backend.classify,
            saturated=backend.saturated,
            telemetry=telemetry,
        )

    async def ask(self, operation: str, run: Callable[[], Awaitable[T]], seconds: float) -> T:
        """The answer to `run()` within `seconds`.

        Raises:
            CallFailed: there was none; it carries the error as the backend classifies it.
        """
        return await self._guard.once(operation, run, deadline=Deadline(time.monotonic, seconds))

    async def close(self) -> None:
        """Let go of everything, within bounds."""
        await self._guard.settle(SETTLE_SECONDS)
        await self.backend.close()


@asynccontextmanager
async def opened_primary(config: CheckpointerConfig) -> AsyncIterator[Primary]:
    """The primary of a configuration. The database need not be up, and nothing is made in it.

    Raises:
        CheckpointerConfigurationError: it cannot be opened for a reason that waiting does not fix.
    """
    config = config.with_overrides(pool_min_size=0)  # no connection but those that are asked for
    primary = Primary(find_backend(config.backend_name)(config, SharingSerializer(config.serde)), Broadcast([]))
    try:
        await primary.backend.open()
        yield primary
    finally:
        await primary.close()


async def bounded(work: Awaitable[T], seconds: float) -> T:
    """The result of `work` within `seconds`; what takes longer is left behind, as its end may wait for whatever hangs.

    Raises:
        TimeoutError: it takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()


CONFIGURED = "env"
"""Names the database that an application in this environment uses."""

KNOWN = f"postgresql://user@host/database, sqlite:///path, the path of a SQLite file, or {CONFIGURED}"
DEADLINE = 10.0
"""Seconds after which a connection that does not come about, or a lock, is given up for this time."""
SPARE_CONNECTIONS = 2
"""Besides one for each thread that is moved at a time."""

_URL = re.compile(r"\A(?P<scheme>[A-Za-z][\w.-]*)(?:\+\w+)?://(?P<rest>.*)", re.DOTALL)


class NoTablesError(UsageError):
    """A database that answers has no tables of checkpoints."""


@dataclass(frozen=True, slots=True)
class JournalPlace:
    """A directory of journals, and whether an application there takes over those of databases of every name."""

    directory: Path
    takes_over_all: bool = False


@dataclass(frozen=True, slots=True)
class Naming:
    """What the names on one command line mean; `serde` is `module:name` of the application's serializer."""

    environment: str | None = None
    env_file: Path | None = None
    serde: str | None = None
    concurrency: int = 1

    def config(self, name: str) -> CheckpointerConfig:
        """The configuration of the database of that name.

        Raises:
            UsageError: the name is not understood, or it is memory.
            CheckpointerConfigurationError: the URL is not right.
        """
        config = self._configured() if name == CONFIGURED else _config_of(name)
        of_sqlite = config.backend_name == "sqlite" and str(config.database_path) == ":memory:"
        if of_sqlite or config.backend_name == "memory":
            named = "The configured primary" if name == CONFIGURED else "What was named"
            raise UsageError(f"{named} is memory, which is another one in every process. Name a database: {KNOWN}.")
        connections = max(config.pool_max_size, self.concurrency + SPARE_CONNECTIONS)
        config = config.with_overrides(deadline=max(config.deadline, DEADLINE), pool_max_size=connections)
        return config.with_overrides(serde=imported_serializer(self.serde)) if self.serde else config

    def journal(self) -> JournalPlace:
        """Where an application in this environment has its journal."""
        with reading(Options(environment=self.environment, env_file=self.env_file)) as read:
            config = read.config
        if config is None:
            return JournalPlace(CheckpointerConfig.model_fields["journal_dir"].default)
        return JournalPlace(config.journal_dir, config.journal_adopt == "all")

    def _configured(self) -> CheckpointerConfig:
        with reading(Options(environment=self.environment, env_file=self.env_file)) as read:
            return required(read)


def home(config: CheckpointerConfig) -> str:
    """What the database is called, without whose it is."""
    return _backend(config).database_id()


@asynccontextmanager
async def opened_source(config: CheckpointerConfig, role: str = "source") -> AsyncIterator[Backend]:
    """A database to read from. Nothing is made in it.

    Raises:
        NoTablesError: it has no tables of checkpoints.
        UsageError: there is none, or only its log, or it cannot be read.
    """
    path = str(config.database_path)
    if config.backend_name == "sqlite" and (log := orphaned_log(path)) is not None:
        raise UsageError(f"The {role}, {orphan_text(path, log)}. {ORPHANED_LOG_FIX}")
    if _is_missing(config):
        raise NoTablesError(f"There is no file {config.database_path}, which is named as the {role}.")
    async with _opened(config.with_overrides(auto_setup=False)) as backend:
        try:
            await backend.thread_ids(None, 1)
        except Exception as error:  # whatever the driver raises, the backend knows it
            raise _unusable(backend, role, error) from error
        yield backend


@asynccontextmanager
async def opened_target(config: CheckpointerConfig) -> AsyncIterator[Backend]:
    """A database to write to; its tables are made if they are missing, unless the configuration forbids it.

    Raises:
        UsageError: it cannot be used.
    """
    async with _opened(config) as backend:
        try:
            await backend.setup()
        except Exception as error:  # as above
            raise _unusable(backend, "target", error) from error
        yield backend


@asynccontextmanager
async def opened_for_rehearsal(config: CheckpointerConfig) -> AsyncIterator[Backend]:
    """A target that is only looked at: something empty with its name where it has no tables yet.

    Raises:
        UsageError: it cannot be read.
    """
    async with AsyncExitStack() as stack:
        try:
            backend = await stack.enter_async_context(opened_source(config, "target"))
        except NoTablesError:
            backend = _Nothing(home(config))
        yield backend


class _Nothing(MemoryBackend):
    """What a target is before its tables are made."""

    def __init__(self, home: str) -> None:
        super().__init__(create_memory_checkpointer(), SharingSerializer())
        self._home = home

    def home(self) -> str:
        return self._home


def _is_missing(config: CheckpointerConfig) -> bool:
    """Whether there is no file, which looking into it would make."""
    return config.backend_name == "sqlite" and not Path(config.database_path).is_file()


@asynccontextmanager
async def _opened(config: CheckpointerConfig) -> AsyncIterator[Backend]:
    backend = _backend(config)
    try:
        await backend.open()
        yield backend
    finally:
        await backend.close()


def _backend(config: CheckpointerConfig) -> Backend:
    return find_backend(config.backend_name)(config, SharingSerializer(config.serde))


def _unusable(backend: Backend, role: str, error: Exception) -> UsageError:
    if isinstance(error, CheckpointerError):
        return UsageError(f"The {role}, {backend.database_id()}: {error}")
    failure, what = backend.classify(error), f"The {role}, {backend.database_id()}"
    if _lacks_tables(failure.error):
        return NoTablesError(f"{what}, has no tables of checkpoints. Is it the right database?")
    text = f"{what}, cannot be used: {' '.join(redact(failure.error).split()).rstrip('.?')}."
    return UsageError(f"{text} {failure.fix or 'Is it the right one, and does it run?'}")


def _lacks_tables(error: BaseException) -> bool:
    return getattr(error, "sqlstate", None) == "42P01" or "no such table" in str(error)


def _config_of(name: str) -> CheckpointerConfig:
    found = _URL.fullmatch(name.strip())
    if found is None:
        if ("@" in name or "=" in name) and not Path(name).exists():
            raise UsageError(
                "What was named is no file that is there, and no URL: it has no scheme, such as postgresql://. It is "
                f"not repeated here, as there may be a password in it. Name a database: {KNOWN}."
            )
        return CheckpointerConfig(checkpointer_type=CheckpointerType.SQLITE, database_path=name)
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme in ("postgres", "postgresql"):
        return CheckpointerConfig(checkpointer_type=CheckpointerType.POSTGRES, connection_string=name)
    if scheme == "sqlite":
        if not rest.startswith("/") or rest == "/":
            raise UsageError(
                "A URL of SQLite is sqlite:///path for a relative path, sqlite:////path for an absolute one."
            )
        return CheckpointerConfig(checkpointer_type=CheckpointerType.SQLITE, database_path=unquote(rest[1:]))
    try:
        find_backend(scheme)
    except CheckpointerConfigurationError:
        raise UsageError(f"No installed backend is called {scheme!r}. Name a database: {KNOWN}.") from None
    return CheckpointerConfig(checkpointer_type=scheme, connection_string=name)


def imported_serializer(name: str) -> SerializerProtocol:
    """The application's serializer, which this looks for as `python -m` would: from the working directory too."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--serde {name} cannot be imported: {redact(error)}. Give module:name.") from error
    if not isinstance(found, SerializerProtocol):
        raise UsageError(f"--serde {name} is no serializer of LangGraph: it lacks dumps_typed or loads_typed.")
    return found
