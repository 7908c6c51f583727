"""From environment variables to a `CheckpointerConfig`: what each profile chooses, and what overrides it.

Only the real environment is read; a `.env` file counts once something (a shell, a container, `dotenv`) has loaded it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Unpack

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from enhanced_checkpointing.config import (
    CheckpointerConfig,
    CheckpointerType,
    ProfileOverrides,
    SettingFields,
    hide_secrets,
    variable_of,
)

__all__ = [
    "CheckpointerSettings",
    "get_development_checkpointer_config",
    "get_production_checkpointer_config",
    "get_testing_checkpointer_config",
    "unknown_variables",
]

logger = logging.getLogger(__name__)

PROTECTING = ("journal_key", "status_token")
"""Secrets that protect something only where they are set."""


class CheckpointerSettings(BaseSettings, SettingFields):
    """The environment: `CHECKPOINT_<NAME>` for every setting, and four well-known variables without the prefix.

    Names count in any case; a variable that is set but empty counts as not set, but for secrets, which are refused
    then: what they protect would be open by mistake. Raises
    `CheckpointerConfigurationError`, which names the variable, the fault and the fix, and never contains the value.
    """

    model_config = SettingsConfigDict(env_prefix="CHECKPOINT_", env_ignore_empty=True)

    # An alias equal to the field's name takes the prefix away and leaves the keyword of the constructor as it is.
    database_url: SecretStr | None = Field(default=None, validation_alias="database_url")
    """PostgreSQL URL of the primary in production; wins over POSTGRES_URL."""
    postgres_url: SecretStr | None = Field(default=None, validation_alias="postgres_url")
    """PostgreSQL URL of the primary in production where DATABASE_URL is not set."""
    dev_use_sqlite: bool = Field(default=False, validation_alias="dev_use_sqlite")
    """True: development keeps its checkpoints in the SQLite file instead of memory."""
    sqlite_path: str = Field(
        default=str(CheckpointerConfig.model_fields["database_path"].default), validation_alias="sqlite_path"
    )
    """SQLite file of development with DEV_USE_SQLITE, and of production without DATABASE_URL and POSTGRES_URL."""

    @model_validator(mode="before")
    @classmethod
    def _empty_secrets_count(cls, values: dict[str, Any]) -> dict[str, Any]:
        empty = {name.upper() for name, value in os.environ.items() if not value}
        return {**{name: "" for name in PROTECTING if variable_of(name) in empty}, **values}

    def to_config(self, environment: str | None = None, **overrides: Unpack[ProfileOverrides]) -> CheckpointerConfig:
        """Return the configuration of a profile; `overrides` win over variables, variables over defaults.

        `environment` None means CHECKPOINT_ENVIRONMENT, else development. Only what was set is handed on, so that
        `model_fields_set` of the result tells what somebody asked for by name.
        """
        hide_secrets(overrides)
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in SettingFields.model_fields if name in self.model_fields_set
        }
        if connection_string := self.database_url or self.postgres_url:
            fields["connection_string"] = connection_string
        if "sqlite_path" in self.model_fields_set:
            fields["database_path"] = self.sqlite_path
        fields.update(overrides)
        if environment is not None:
            fields["environment"] = environment
        # An environment that does not exist is refused here, before a profile is chosen by it.
        profile = SettingFields(environment=fields.get("environment", "development")).environment
        if "checkpointer_type" not in fields:
            fields["checkpointer_type"] = self._primary_of(profile, bool(fields.get("connection_string")))
            if (profile, fields["checkpointer_type"]) == ("production", CheckpointerType.SQLITE):
                _warn_that_production_is_on_sqlite()
        return CheckpointerConfig(**fields)

    def _primary_of(self, profile: str, has_connection_string: bool) -> CheckpointerType:
        if profile == "production":
            return CheckpointerType.POSTGRES if has_connection_string else CheckpointerType.SQLITE
        if profile == "development" and self.dev_use_sqlite:
            return CheckpointerType.SQLITE
        return CheckpointerType.MEMORY

    def model_post_init(self, context: Any, /) -> None:
        """Warn of misspelt variables of the environment that was just read."""
        _warn_of_unknown_variables(os.environ)


def get_development_checkpointer_config(**overrides: Unpack[ProfileOverrides]) -> CheckpointerConfig:
    """Memory, or the SQLite file SQLITE_PATH when DEV_USE_SQLITE is true."""
    hide_secrets(overrides)
    return CheckpointerSettings().to_config("development", **overrides)


def get_testing_checkpointer_config(**overrides: Unpack[ProfileOverrides]) -> CheckpointerConfig:
    """Memory."""
    hide_secrets(overrides)
    return CheckpointerSettings().to_config("testing", **overrides)


def get_production_checkpointer_config(**overrides: Unpack[ProfileOverrides]) -> CheckpointerConfig:
    """PostgreSQL at DATABASE_URL or POSTGRES_URL; where neither is set, the SQLite file SQLITE_PATH, with a warning."""
    hide_secrets(overrides)
    return CheckpointerSettings().to_config("production", **overrides)


def _warn_that_production_is_on_sqlite() -> None:
    logger.warning(
        "The profile is production, but neither DATABASE_URL nor POSTGRES_URL is set: checkpoints go to a SQLite file, "
        "which other machines do not see and which is lost with this disk; set DATABASE_URL to use PostgreSQL."
    )


def unknown_variables(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names that look like settings and are none, each with the setting that comes closest."""
    known = {variable_of(name) for name in SettingFields.model_fields}
    return [
        (name, get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0])
        for name in sorted(names)
        if name.upper().startswith("CHECKPOINT_") and name.upper() not in known
    ]


def _warn_of_unknown_variables(names: Iterable[str]) -> None:
    for name, closest in unknown_variables(names):
        logger.warning("%s is not a setting and has no effect; the closest one is %s.", name, closest)
