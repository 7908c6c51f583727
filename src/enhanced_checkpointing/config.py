"""`CheckpointerConfig`: every setting with its type, default, range, unit and meaning, said and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict, Unpack

from langgraph.checkpoint.serde.base import SerializerProtocol
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from enhanced_checkpointing.config_rules import (
    bearer_token,
    connection_string_problem,
    in_home,
    libpq_spelling,
    long_enough,
    lower_case,
    misfit,
    names_a_file,
    no_uri_of_sqlite,
    not_a_url,
    off_is_none,
    schema_name,
)
from enhanced_checkpointing.errors import CheckpointerConfigurationError, redact

__all__ = [
    "CheckpointerConfig",
    "CheckpointerType",
    "ConfigFields",
    "FactoryFields",
    "ProfileOverrides",
    "SettingFields",
    "create_memory_checkpointer",
    "create_postgres_checkpointer",
    "create_sqlite_checkpointer",
    "variable_of",
]


class CheckpointerType(StrEnum):
    """The backends that come with the library; every one of them serves synchronous and asynchronous callers."""

    MEMORY = "memory"
    SQLITE = "sqlite"
    POSTGRES = "postgres"
    ASYNC_SQLITE = "async_sqlite"
    ASYNC_POSTGRES = "async_postgres"

    @property
    def backend_name(self) -> str:
        """The name of the entry point in the group `enhanced_checkpointing.backends`."""
        return self.value.removeprefix("async_")


def _known_type_or_backend_name(value: object) -> CheckpointerType | str:
    if isinstance(value, str) and value.strip():
        name = value.strip()
        return CheckpointerType(name.lower()) if name.lower() in set(CheckpointerType) else name
    known = ", ".join(CheckpointerType)
    raise misfit("it is not the name of a backend", f"use one of {known}, or the name of a registered backend")


def _range(least: float, most: float, unit: str | None = None) -> FieldInfo:
    field: FieldInfo = Field(ge=least, le=most, json_schema_extra={"unit": unit} if unit else None)
    return field


Seconds = Annotated[float, _range(0.01, 3600, "s")]
Environment = Annotated[Literal["development", "testing", "production"], BeforeValidator(lower_case)]
OnOutage = Annotated[Literal["journal", "raise"], BeforeValidator(lower_case)]
OnUnknownThread = Annotated[Literal["raise", "start_fresh"], BeforeValidator(lower_case)]
OnDivergence = Annotated[Literal["newest_wins", "quarantine"], BeforeValidator(lower_case)]
ThreadOwnership = Annotated[Literal["enforce", "record"], BeforeValidator(lower_case)]
Journal = Annotated[Literal["durable", "memory", "off"], BeforeValidator(lower_case)]
JournalAdopt = Annotated[Literal["own", "all"], BeforeValidator(lower_case)]
Retention = Annotated[Literal["off", "on"], BeforeValidator(lower_case)]
Days = Annotated[float, _range(0, 36_500, "days")]
RetentionKeep = Annotated[Annotated[int, _range(1, 1_000_000)] | None, BeforeValidator(off_is_none)]
PrepareThreshold = Annotated[Annotated[int, _range(0, 1_000_000)] | None, BeforeValidator(off_is_none)]


class SettingFields(BaseModel):
    """Every setting that has a variable `CHECKPOINT_<NAME>`; `CheckpointerSettings` inherits the same fields.

    A value that does not fit raises `CheckpointerConfigurationError`, which never contains the value.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )

    environment: Environment = "development"
    """Profile that chooses the primary: development, testing or production."""
    enabled: bool = True
    """False: no checkpointer is handed out (None), and graphs run without persistence."""
    auto_setup: bool = True
    """Create missing tables at start; false: missing tables are an error that says so."""
    require_primary: bool = False
    """Refuse to start while the primary is down; false: start degraded and set it up later."""
    deadline: Seconds = 5.0
    """Total time that one call may take, waiting and retries included."""
    retries: Annotated[int, _range(0, 10)] = 2
    """How often a transient failure is tried again within the deadline."""
    breaker_failures: Annotated[int, _range(1, 1000)] = 3
    """Failures in a row after which calls no longer touch the primary."""
    probe_interval: Seconds = 5.0
    """Time between two probes of a healthy primary."""
    probe_backoff_min: Seconds = 0.5
    """Time between the first probes of an outage; it grows up to probe_backoff_max."""
    probe_backoff_max: Seconds = 15.0
    """Longest time between two probes of an outage, so the longest that a recovery goes unnoticed."""
    on_outage: OnOutage = "journal"
    """Writes in an outage: journal (acknowledged, drained later) or raise."""
    # The default is None so that the profile can choose; the validator below leaves no None in the field.
    on_unknown_thread: OnUnknownThread = Field(default=None, validate_default=True)
    """Read of an unknown thread in an outage: raise (default in production) or start_fresh (default elsewhere)."""
    on_divergence: OnDivergence = "newest_wins"
    """Branch of an outage beside another: newest_wins (kept in the same thread) or quarantine (a sibling thread)."""
    # None here too: a primary in memory chooses a journal in memory.
    journal: Journal = Field(default=None, validate_default=True)
    """Writes of an outage are kept: durable (default), memory (default where the primary is memory) or off (raise)."""
    journal_dir: Annotated[Path, AfterValidator(not_a_url), AfterValidator(in_home)] = Path(".checkpoints/journal")
    """Directory of the durable journal, on a local disk: one for each process, used again by its next start."""
    journal_adopt: JournalAdopt = "own"
    """What ended processes left in journal_dir is drained: own (of this database), or all (that database has moved)."""
    journal_key: Annotated[SecretStr, AfterValidator(long_enough)] | None = None
    """Secret that signs the journal; what is not signed with it is refused as damage. Not set: nothing is signed."""
    journal_max_bytes: Annotated[int, _range(4096, 2**50, "bytes")] = 256 * 1024 * 1024
    """Size at which the journal is full and accepts no more writes."""
    standby_max_bytes: Annotated[int, _range(0, 2**50, "bytes")] = 64 * 1024 * 1024
    """Size of the warm copy of recent threads; the least recently used leave it first."""
    pool_min_size: Annotated[int, _range(0, 1000)] = 1
    """PostgreSQL connections that are kept open."""
    pool_max_size: Annotated[int, _range(1, 1000)] = 10
    """PostgreSQL connections at most."""
    postgres_schema: Annotated[str, AfterValidator(schema_name)] | None = None
    """PostgreSQL schema of the tables; not set: the first one of the connection's search_path."""
    postgres_prepare_threshold: PrepareThreshold = 0
    """Runs of a PostgreSQL statement before it is prepared; 0: prepared at its first use, off: never."""
    drain_concurrency: Annotated[int, _range(1, 1000)] = 4
    """Threads that are drained at a time after an outage."""
    shutdown_grace: Annotated[float, _range(0, 3600, "s")] = 10.0
    """Time that a stop may spend on draining what is left."""
    retention: Retention = "off"
    """Old threads are deleted in the background: off or on. One of all processes does it."""
    retention_active_days: Days = 7.0
    """How long a thread is kept after it was last used."""
    retention_completed_days: Days = 30.0
    """The same for one that was marked as completed."""
    retention_failed_days: Days = 3.0
    """The same for one that was marked as failed."""
    retention_keep: RetentionKeep = None
    """Newest checkpoints of each namespace that stay of a thread that is kept; off: all."""
    retention_interval: Annotated[float, _range(1, 31 * 86_400, "s")] = 3600.0
    """Time between two looks at all threads."""
    retention_refresh_on_read: bool = False
    """Whether reading a thread counts as using it."""
    accept_unencrypted: bool = False
    """With a serializer that encrypts: read values that are stored without, for the time of a migration."""
    thread_ownership: ThreadOwnership = "enforce"
    """Threads that have an owner: enforce (for another user they do not exist) or record (owners are only stored)."""
    status_token: Annotated[SecretStr, AfterValidator(bearer_token)] | None = None
    """Token that opens the status page, its JSON, health and metrics (Authorization: Bearer …); not set: none asked."""

    def __init__(self, /, **fields: Any) -> None:
        refused = None
        try:
            super().__init__(**fields)
        except CheckpointerConfigurationError as error:
            refused = error.with_traceback(None)
        if refused is not None:  # without the frames that hold what was given, passwords among it
            fields.clear()
            raise refused

    @field_validator("on_unknown_thread", mode="before")
    @classmethod
    def _profile_chooses(cls, value: object, info: ValidationInfo) -> object:
        if value is not None:
            return value
        return "raise" if info.data.get("environment") == "production" else "start_fresh"

    @field_validator("journal", mode="before")
    @classmethod
    def _durable_unless_the_primary_is_not(cls, value: object) -> object:
        return "durable" if value is None else value

    @model_validator(mode="wrap")
    @classmethod
    def _raise_our_own_error(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            explanation = _explain(cls, error)
        # Raised out here, so that pydantic's error, which holds the values, is not even its context.
        raise CheckpointerConfigurationError(explanation)


class _SharedFields(TypedDict, total=False):
    """What callers may write for the fields of `CheckpointerConfig`, where it is wider than what the field holds."""

    enabled: bool
    auto_setup: bool
    require_primary: bool
    deadline: float
    retries: int
    breaker_failures: int
    probe_interval: float
    probe_backoff_min: float
    probe_backoff_max: float
    on_outage: Literal["journal", "raise"]
    on_unknown_thread: Literal["raise", "start_fresh"] | None
    on_divergence: Literal["newest_wins", "quarantine"]
    journal: Literal["durable", "memory", "off"]
    journal_dir: str | Path
    journal_adopt: Literal["own", "all"]
    journal_key: str | SecretStr | None
    journal_max_bytes: int
    standby_max_bytes: int
    pool_min_size: int
    pool_max_size: int
    postgres_schema: str | None
    postgres_prepare_threshold: int | Literal["off"] | None
    drain_concurrency: int
    shutdown_grace: float
    retention: Literal["off", "on"]
    retention_active_days: float
    retention_completed_days: float
    retention_failed_days: float
    retention_keep: int | Literal["off"] | None
    retention_interval: float
    retention_refresh_on_read: bool
    accept_unencrypted: bool
    thread_ownership: Literal["enforce", "record"]
    status_token: str | SecretStr | None
    enable_async: bool
    thread_safe: bool
    serde: SerializerProtocol | None


class FactoryFields(_SharedFields, total=False):
    """Keywords of the factories: all but those that choose the primary."""

    environment: str


class ProfileOverrides(_SharedFields, total=False):
    """Keywords that override a profile: all but the environment, which names the profile."""

    checkpointer_type: CheckpointerType | str
    connection_string: str | SecretStr | None
    database_path: str | Path


class ConfigFields(FactoryFields, ProfileOverrides, total=False):
    """Keywords of `CheckpointerConfig`: all fields."""


class CheckpointerConfig(SettingFields):
    """Everything that a manager is opened with; frozen, checked when it is made, safe to print.

    Besides the settings it holds what only code can say. Raises `CheckpointerConfigurationError` for every value that
    does not fit; the message names the field, its environment variable and the fix, never the value.
    """

    checkpointer_type: Annotated[CheckpointerType | str, PlainValidator(_known_type_or_backend_name)] = (
        CheckpointerType.MEMORY
    )
    """The primary: a `CheckpointerType`, its value in any case, or the name of a registered third-party backend."""
    connection_string: Annotated[SecretStr, AfterValidator(libpq_spelling)] | None = None
    """PostgreSQL URL or `host=… dbname=…` pairs."""
    database_path: Annotated[
        str | Path,
        AfterValidator(no_uri_of_sqlite),
        AfterValidator(not_a_url),
        AfterValidator(in_home),
        AfterValidator(names_a_file),
    ] = "checkpoints.sqlite"
    """File of the SQLite primary; its folder is created. `~` is the user's home, and `:memory:` no file."""
    enable_async: bool = True
    """False gives the manager an event loop in a thread of its own, for programs without one."""
    thread_safe: bool = True
    """Accepted because people write it; the saver is always thread-safe, so False is refused."""
    serde: SerializerProtocol | None = Field(default=None, repr=False)
    """LangGraph serializer of everything that is stored; None: `JsonPlusSerializer()`."""

    if TYPE_CHECKING:

        def __init__(self, **fields: Unpack[ConfigFields]) -> None: ...

    @field_validator("thread_safe")
    @classmethod
    def _always_thread_safe(cls, value: bool) -> bool:
        if not value:
            raise misfit("the saver is always thread-safe", "leave thread_safe out, or set it to True")
        return value

    @field_serializer("serde", when_used="json")
    def _serde_as_its_name(self, serde: SerializerProtocol | None) -> str | None:
        return None if serde is None else type(serde).__qualname__

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        if self.backend_name == "memory" and "journal" not in self.model_fields_set:
            self.__dict__["journal"] = "memory"  # not among the fields that were set: nobody asked for it by name
        for least, most in (("probe_backoff_min", "probe_backoff_max"), ("pool_min_size", "pool_max_size")):
            if getattr(self, least) > getattr(self, most):
                raise CheckpointerConfigurationError(
                    f"{_label(least)}: it is greater than {_label(most)}. Fix: lower the first or raise the second"
                )
        if self.backend_name == "postgres":
            problem = connection_string_problem(self.connection_string)
            if problem is not None:
                raise CheckpointerConfigurationError(f"{_label('connection_string')}: {problem}")
        return self

    @property
    def backend_name(self) -> str:
        """The name of the primary's entry point in the group `enhanced_checkpointing.backends`."""
        chosen = self.checkpointer_type
        return chosen.backend_name if isinstance(chosen, CheckpointerType) else chosen

    def with_overrides(self, **fields: Unpack[ConfigFields]) -> Self:
        """Return a copy with `fields` changed, checked anew; defaults that depend on the environment follow it."""
        hide_secrets(fields)
        explicit: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**explicit, **fields})

    def redacted(self) -> dict[str, JsonValue]:
        """Return all fields as plain JSON types without secrets, for health reports and diagnosis."""
        return {
            name: redact(value) if isinstance(value, str) else value
            for name, value in self.model_dump(mode="json").items()
        }


def hide_secrets(fields: Mapping[str, Any]) -> None:
    """Replace secrets among keyword arguments, so that no frame of a traceback from here on shows them."""
    assert isinstance(fields, dict)
    for name in ("connection_string", "journal_key", "status_token"):
        if isinstance(fields.get(name), str):
            fields[name] = SecretStr(fields[name])


def create_memory_checkpointer(**fields: Unpack[FactoryFields]) -> CheckpointerConfig:
    """Configure a primary in this process's memory: for tests and development, nothing outlives the process."""
    hide_secrets(fields)
    return CheckpointerConfig(checkpointer_type=CheckpointerType.MEMORY, **fields)


def create_sqlite_checkpointer(
    database_path: str | Path = "checkpoints.sqlite", **fields: Unpack[FactoryFields]
) -> CheckpointerConfig:
    """Configure a primary in a SQLite file: durable on this machine, for one machine's processes."""
    hide_secrets(fields)
    return CheckpointerConfig(checkpointer_type=CheckpointerType.SQLITE, database_path=database_path, **fields)


def create_postgres_checkpointer(
    connection_string: str | SecretStr, **fields: Unpack[FactoryFields]
) -> CheckpointerConfig:
    """Configure a PostgreSQL primary; `connection_string` is a URL or `host=… dbname=…` pairs."""
    hide_secrets(fields)
    if isinstance(connection_string, str):
        connection_string = SecretStr(connection_string)
    return CheckpointerConfig(
        checkpointer_type=CheckpointerType.POSTGRES, connection_string=connection_string, **fields
    )


_NOT_PREFIXED = {
    "connection_string": "DATABASE_URL or POSTGRES_URL",
    "database_path": "SQLITE_PATH",
    "checkpointer_type": "chosen by CHECKPOINT_ENVIRONMENT",
    "enable_async": "set in code",
    "thread_safe": "set in code",
    "serde": "set in code",
}


def variable_of(name: str) -> str:
    """Return the environment variable of a field of `CheckpointerConfig` or `CheckpointerSettings`."""
    return f"CHECKPOINT_{name.upper()}" if name in SettingFields.model_fields else _NOT_PREFIXED.get(name, name.upper())


def _label(name: str) -> str:
    return f"{name} ({variable_of(name)})"


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    """Say for each field that does not fit what is wrong with it and what fits, without any value."""
    sentences: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_input=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        field = model.model_fields.get(name)
        if not name or fault["type"] == "setting":
            sentence = fault["msg"]
        elif field is None:
            closest = get_close_matches(name, model.model_fields, n=1)
            hint = f"did you mean {_label(closest[0])}?" if closest else f"use one of {', '.join(model.model_fields)}"
            sentence = f"there is no such setting. Fix: {hint}"
        else:
            sentence = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}. Fix: {_what_fits(field)}"
        label = _label(name) if field else name or model.__name__
        sentences.setdefault(name, f"{label}: {sentence}")
    return "\n".join(sentences.values())


def _what_fits(field: FieldInfo) -> str:
    limits = {name: getattr(limit, name) for limit in field.metadata for name in ("ge", "le") if hasattr(limit, name)}
    fits = f"a number from {limits['ge']} to {limits['le']}" if limits else "what its meaning says"
    fits = "true or false" if field.annotation is bool else fits
    unit = f" {field.json_schema_extra['unit']}" if isinstance(field.json_schema_extra, dict) else ""
    return f"give {fits}{unit}, or leave it out for the default. Its meaning: {field.description}"
