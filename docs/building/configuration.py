"""Makes docs/configuration.md of the settings: `python -m docs.building.configuration --write`.

The groups and their order are those of `.env.example`; all else is what the model of the settings says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docs.building.writing import DOCS, ROOT, write_or_print
from enhanced_checkpointing.config import CheckpointerConfig, variable_of
from enhanced_checkpointing.settings import CheckpointerSettings

PAGE = DOCS / "configuration.md"
MADE_OF_VARIABLES = {"connection_string", "database_path"}
TYPES = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text"}
BINARY = (("TiB", 2**40), ("MiB", 2**20), ("KiB", 2**10))

BEFORE = """\
# Configuration

Made by `python -m docs.building.configuration --write` of the settings themselves.

Each setting is an environment variable, and a field of `CheckpointerConfig`: the factories
(`create_postgres_checkpointer(…)` and the others) and `initialize_enhanced_checkpointing(…)` take it as a keyword.

| Of two values, this one counts | |
| --- | --- |
| 1. | the keyword in code |
| 2. | the environment variable; its name counts in any case, and an empty one counts as not set |
| 3. | what the profile chooses |
| 4. | the default |

A configuration that is given whole (`custom_config=`, or `EnhancedCheckpointerManager(config)`) reads no variable.
A `.env` file is not read: a shell, a container or a process manager loads it. [.env.example](../.env.example) has every
variable with its default.

A value that does not fit ends the start with `CheckpointerConfigurationError`, which names the variable and what fits,
and never shows the value. A variable that begins with `CHECKPOINT_` and is no setting is warned of, with the name that
comes closest. `checkpointing doctor` prints every setting with its value and where that comes from;
`checkpointing doctor --env-file FILE` looks at what a file would do.

| Profile (`CHECKPOINT_ENVIRONMENT`) | Primary | Read of an unknown thread in an outage |
| --- | --- | --- |
| `development` | memory; with `DEV_USE_SQLITE=true` the file `SQLITE_PATH` | `start_fresh` |
| `testing` | memory | `start_fresh` |
| `production` | PostgreSQL at `DATABASE_URL` or `POSTGRES_URL`; without them `SQLITE_PATH`, with a warning | `raise` |
"""

IN_CODE = """
## Only in code

| Field of `CheckpointerConfig` | Default | Meaning |
| --- | --- | --- |
"""

AFTER = """
What each of them costs: [Performance](performance.md). What each of them means for the data:
[Guarantees](guarantees.md). Spans and metrics are sent by `configure_telemetry()`, which reads the variables of
OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, …).
"""


def page() -> str:
    """The whole page."""
    schema = CheckpointerSettings.model_json_schema()["properties"]
    by_variable = {variable_of(name): (name, schema[name]) for name in CheckpointerSettings.model_fields}
    text = BEFORE
    for heading, variables in groups():
        text += f"\n## {heading}\n"
        for variable in variables:
            text += section(variable, *by_variable.pop(variable))
    if by_variable:
        raise LookupError(f".env.example lacks {', '.join(by_variable)}")
    return text + IN_CODE + "".join(rows_in_code()) + AFTER


def groups() -> Iterator[tuple[str, list[str]]]:
    """The headings of `.env.example`, each with its variables."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    _, *parts = re.split(r"^# --- (.+) ---$", example, flags=re.MULTILINE)
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        yield heading, re.findall(r"^#([A-Z_]+)=", body, flags=re.MULTILINE)


def section(variable: str, name: str, schema: dict[str, Any]) -> str:
    """One setting: what it means, and what may be given."""
    unit = str(_found(schema, "unit") or "")
    facts = [("type", type_of(schema)), ("default", shown(schema.get("default"), unit))]
    least, most = _found(schema, "minimum"), _found(schema, "maximum")
    if least is not None and most is not None:
        facts.append(("range", f"{shown(least, unit)} to {shown(most, unit)}"))
    if name in CheckpointerConfig.model_fields:
        facts.append(("in code", f"`{name}=`"))
    lines = "\n".join(f"- {fact}: {value}" for fact, value in facts)
    return f"\n### `{variable}`\n\n{schema['description']}\n\n{lines}\n"


def type_of(schema: dict[str, Any]) -> str:
    """What kind of value it is, in words."""
    if choices := _found(schema, "enum"):
        return " or ".join(f"`{choice}`" for choice in choices)
    kind, form = str(_found(schema, "type")), _found(schema, "format")
    if form == "password":
        return "URL, a secret" if "URL" in schema["description"] else "text, a secret"
    words = "path" if form == "path" else TYPES[kind]
    return f"{words}, or `off`" if "off: " in schema["description"] else words


def shown(value: object, unit: str) -> str:
    """A value as one would write it, with its unit."""
    if value is None:
        return "not set"
    text = (
        str(value).lower() if isinstance(value, bool) else f"{value:.15g}" if isinstance(value, float) else str(value)
    )
    if unit != "bytes" or not isinstance(value, int):
        return f"`{text}` {unit}".rstrip()
    name, size = next(((name, size) for name, size in BINARY if value >= size and value % size == 0), ("", 1))
    return f"`{text}` bytes" + (f" ({value // size} {name})" if name else "")


def rows_in_code() -> Iterator[str]:
    """The fields that no variable sets."""
    for name, field in CheckpointerConfig.model_fields.items():
        if name not in CheckpointerSettings.model_fields:
            default = "not set" if field.default is None else f"`{field.default}`"
            made_of = f" The environment's: {variable_of(name)}." if name in MADE_OF_VARIABLES else ""
            yield f"| `{name}` | {default} | {field.description}{made_of} |\n"


def _found(schema: dict[str, Any], key: str) -> Any:
    """What a schema, or the one of its alternatives that is not null, says."""
    for part in (schema, *(each for each in schema.get("anyOf", ()) if each.get("type") != "null")):
        if key in part:
            return part[key]
    return None


if __name__ == "__main__":
    write_or_print(PAGE, page())
