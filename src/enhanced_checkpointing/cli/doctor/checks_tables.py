"""What the facts of the checkpoint tables mean: are they there, of the right version, ours to use. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from enhanced_checkpointing.backends.postgres.index import INDEX
from enhanced_checkpointing.cli.findings import Finding, failed, fine, warning
from enhanced_checkpointing.cli.postgres_facts import NEWEST_SCHEMA, TABLES, PostgresFacts
from enhanced_checkpointing.config import CheckpointerConfig

__all__ = ["check_indexes", "check_privileges", "check_schema"]

NO_START = "An application that starts now is refused its start."


def check_schema(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    name, version = "database.schema", facts.schema_version
    there = [table for table in TABLES if facts.answers.get("tables", {}).get(table)]
    details = {"version": version, "newest": NEWEST_SCHEMA, "tables": there}
    if version is not None and version >= NEWEST_SCHEMA and len(there) < len(TABLES):
        gone = ", ".join(table for table in TABLES if table not in there)
        yield failed(
            name,
            f"{gone} is missing, although checkpoint_migrations says that it was made.",
            NO_START,
            "Restore the table from a backup. If nothing in it is needed: DROP TABLE checkpoint_migrations, then "
            "`checkpointing setup`.",
            **details,
        )
    elif version is not None and version >= NEWEST_SCHEMA:
        newer = version > NEWEST_SCHEMA
        made_by = f", made by a newer saver of LangGraph than the one installed ({NEWEST_SCHEMA})" if newer else ""
        yield fine(name, f"The tables are there, of version {version}{made_by}.", **details)
    else:
        yield from _unmade(name, facts, config, details)


def _unmade(
    name: str, facts: PostgresFacts, config: CheckpointerConfig, details: Mapping[str, Any]
) -> Iterator[Finding]:
    version = facts.schema_version
    what = "The tables are not there yet" if version is None else f"The tables are of the older version {version}"
    if "version" in facts.refused:
        what = f"The version of the tables cannot be read ({facts.refused['version']})"
    if not config.auto_setup:
        yield failed(
            name,
            f"{what}, and CHECKPOINT_AUTO_SETUP=false forbids the application to make them.",
            NO_START,
            "Run `checkpointing setup` as a user that may create tables, before the application starts.",
            **details,
        )
    elif (refusal := _may_not_make(facts, config)) is not None:
        yield failed(name, f"{what}, and {refusal[0]}.", NO_START, refusal[1], **details)
    else:
        yield fine(name, f"{what}; the first start makes version {NEWEST_SCHEMA}.", **details)


def _may_not_make(facts: PostgresFacts, config: CheckpointerConfig) -> tuple[str, str] | None:
    """Why the tables cannot be made, and what to do; None if nothing speaks against it."""
    user = facts.answers.get("user")
    if user is None or user["may_create_tables"]:
        return None
    owner = "as the owner of the database"
    if user["schema"] is not None:
        what = f"the user {user['name']} may not create tables in the schema {user['schema']}"
        grant = f"GRANT USAGE, CREATE ON SCHEMA {user['schema']} TO {user['name']}"
        return what, f"{owner.capitalize()}: {grant}; or run `checkpointing setup` once as somebody who may."
    if not config.postgres_schema:
        return "no schema of the search_path is there", "Create a schema, or set CHECKPOINT_POSTGRES_SCHEMA."
    if user["may_create_schemas"]:
        return None
    what = f"the schema {config.postgres_schema} is missing and the user {user['name']} may not create it"
    return what, f"{owner.capitalize()}: CREATE SCHEMA {config.postgres_schema} AUTHORIZATION {user['name']}."


def check_privileges(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    user = facts.answers.get("user", {}).get("name", "of DATABASE_URL")
    if facts.missing:
        yield failed(
            "database.privileges",
            f"The user {user} lacks {', '.join(facts.missing)}.",
            NO_START,
            f"As the owner of the tables: GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(TABLES)} TO {user}.",
            missing=list(facts.missing),
        )
    elif facts.has_tables and "privileges" not in facts.refused:
        yield fine("database.privileges", f"The user {user} may read and write the tables.", missing=[])


def check_indexes(facts: PostgresFacts, config: CheckpointerConfig) -> Iterator[Finding]:
    names = facts.answers.get("invalid_indexes", {}).get("names", [])
    if names := [name for name in names if name != INDEX]:  # ours is made anew by every setup
        yield warning(
            "database.indexes",
            f"{', '.join(names)}: half made, by a setup that was interrupted.",
            "It costs every write and helps no read, and setting up again does not mend it.",
            f"DROP INDEX {', '.join(names)}; then `checkpointing setup`.",
            names=names,
        )
