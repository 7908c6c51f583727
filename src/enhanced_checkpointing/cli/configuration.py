"""The configuration that a command works with: as an application reads it, with the options of the command on top.

Like the library, a command reads the environment and no `.env` file, unless it is given one by name.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import SecretStr

from enhanced_checkpointing.cli.output import UsageError
from enhanced_checkpointing.config import CheckpointerConfig, CheckpointerType, variable_of
from enhanced_checkpointing.config_rules import connection_string_problem
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.settings import CheckpointerSettings

ENVIRONMENT, PROFILE, DEFAULT = "environment", "profile", "default"
"""Where the value of a setting may come from, besides a file and an option, which are named."""

SECRETS = ("DATABASE_URL", "POSTGRES_URL")

SET_IN_CODE = ("enable_async", "thread_safe", "serde")

INSTALL_PSYCOPG = 'Install it where the application runs: pip install "psycopg[binary,pool]"'


@dataclass(frozen=True, slots=True)
class Options:
    """What was given on the command line."""

    database_url: str | None = None
    sqlite: Path | None = None
    journal_dir: Path | None = None
    environment: str | None = None
    env_file: Path | None = None

    def overrides(self) -> dict[str, Any]:
        """The fields of `CheckpointerConfig` that the options set.

        Raises:
            UsageError: two of them contradict each other.
        """
        if self.database_url is not None and self.sqlite is not None:
            raise UsageError("choose one of --database-url and --sqlite")
        fields: dict[str, Any] = {}
        if self.database_url is not None:
            fields |= {"checkpointer_type": CheckpointerType.POSTGRES, "connection_string": self.database_url}
        if self.sqlite is not None:
            fields |= {"checkpointer_type": CheckpointerType.SQLITE, "database_path": self.sqlite}
        if self.journal_dir is not None:
            fields["journal_dir"] = self.journal_dir
        return fields


OPTION_OF = {
    "connection_string": "--database-url",
    "database_path": "--sqlite",
    "journal_dir": "--journal-dir",
    "environment": "--environment",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: the field of `CheckpointerConfig`, its variable, its value without secrets, and who chose it."""

    name: str
    variable: str
    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read. Without a `config` the `faults` say why, one sentence for each setting that does not fit."""

    config: CheckpointerConfig | None
    faults: tuple[str, ...]
    settings: tuple[Setting, ...]
    environment: Mapping[str, str]


@contextmanager
def reading(options: Options) -> Iterator[Reading]:
    """The configuration, for as long as its file, if one was given, counts as part of the environment.

    Raises:
        UsageError: there is no such file, or options contradict each other.
    """
    _hush()
    added = variables_of(options.env_file)
    before = dict(os.environ)
    os.environ.update(added)
    try:
        yield read_configuration(options, frozenset(added))
    finally:
        for name in added:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def required(read: Reading) -> CheckpointerConfig:
    """The configuration, for commands that can do nothing without one.

    Raises:
        UsageError: there is none.
    """
    if read.config is None:
        raise UsageError("\n".join(read.faults))
    return read.config


def read_configuration(options: Options, from_file: frozenset[str] = frozenset()) -> Reading:
    """Read the environment as it is now; the variables `from_file` are told apart."""
    overrides = options.overrides()
    config, faults = None, ""
    try:
        config = CheckpointerSettings().to_config(options.environment, **overrides)
    except CheckpointerConfigurationError as error:
        faults = str(error)
    except ImportError as error:
        faults = f"DATABASE_URL: psycopg cannot be imported ({error}). Fix: {INSTALL_PSYCOPG}"
    sources = _Sources(options, overrides, config, from_file)
    names = [name for name in CheckpointerConfig.model_fields if name not in SET_IN_CODE]
    rows = [sources.setting(name) for name in (*names, "dev_use_sqlite")]
    return Reading(config, tuple(faults.splitlines()), tuple(rows), dict(os.environ))


def variables_of(env_file: Path | None) -> dict[str, str]:
    """The variables of a file that the environment does not set: it wins, as with container and process managers."""
    if env_file is None:
        return {}
    if not env_file.is_file():
        raise UsageError(f"--env-file names {env_file}, which is not a file")
    try:
        found = dotenv_values(env_file)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--env-file names {env_file}, which is not UTF-8: byte {error.start + 1} of it is not"
        ) from None
    return {name: value for name, value in found.items() if value and not os.environ.get(name)}


class _Sources:
    """Who chose each setting: an option wins over the environment, that over a file, that over profile and default."""

    def __init__(
        self,
        options: Options,
        overrides: Mapping[str, Any],
        config: CheckpointerConfig | None,
        from_file: frozenset[str],
    ) -> None:
        self._options = options
        self._overrides = overrides
        self._config = config
        self._from_file = from_file
        self._given = {name.upper(): name for name, value in os.environ.items() if value}

    def setting(self, name: str) -> Setting:
        variable = self._variable(name)
        source = self._source(name, variable)
        return Setting(name, variable, _value(name, self._config, source), source)

    def _variable(self, name: str) -> str:
        if name == "connection_string":
            return next((variable for variable in SECRETS if variable in self._given), SECRETS[0])
        return "" if name == "checkpointer_type" else variable_of(name)

    def _source(self, name: str, variable: str) -> str:
        if name == "environment" and self._options.environment is not None:
            return "option --environment"
        if name in self._overrides:
            return f"option {OPTION_OF.get(name) or ('--sqlite' if self._options.sqlite else '--database-url')}"
        if variable in self._given:
            in_file = self._given[variable] in self._from_file
            return f"file {self._options.env_file}" if in_file else ENVIRONMENT
        memory_chose = name == "journal" and self._config is not None and self._config.journal != "durable"
        return PROFILE if name in ("checkpointer_type", "on_unknown_thread") or memory_chose else DEFAULT


def _value(name: str, config: CheckpointerConfig | None, source: str) -> str:
    """What is shown of a value. Of one that could not be checked nothing is: it may hold anything."""
    if name == "dev_use_sqlite":
        return "false" if source == DEFAULT else "set"
    if config is None:
        return "-" if source in (DEFAULT, PROFILE) else "(not shown)"
    value = getattr(config, name)
    if name == "connection_string":
        return "-" if value is None else described_connection(value.get_secret_value())
    if value is None:
        return "off" if name == "postgres_prepare_threshold" else "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def described_connection(connection_string: str) -> str:
    """`postgresql://user:***@host:port/database`, made of those parts alone: whatever else is in it stays out."""
    try:
        from psycopg.conninfo import conninfo_to_dict  # here, as a command has to work where it cannot be imported
    except ImportError:
        return "(not shown: psycopg cannot be imported)"
    # The string of a primary that is not in use is unchecked, and libpq may take a password's end for the host.
    if connection_string_problem(SecretStr(connection_string)) is not None:
        return "(not shown: it cannot be read)"
    parts = {key: str(value) for key, value in conninfo_to_dict(connection_string).items() if value}
    secret = ":***" if "password" in parts else ""
    user = f"{parts.get('user', '')}{secret}@" if parts.get("user") or secret else ""
    hosts, ports = parts.get("host", parts.get("hostaddr", "")).split(","), parts.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{user}{places}/{parts.get('dbname', '')}"


def _hush() -> None:
    """What the library logs, a command says in its own words, once; a root logger that was set up still hears."""
    for name in ("enhanced_checkpointing", "psycopg", "psycopg.pool"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            logger.addHandler(logging.NullHandler())
