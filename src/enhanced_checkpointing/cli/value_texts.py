"""Plain values as text for people: on one line, shortened, and without anything that a terminal would obey. Pure."""

from __future__ import annotations

import json
from typing import Any

from enhanced_checkpointing.cli.plain_values import Described, Unreadable, unwrapped
from enhanced_checkpointing.cli.safe_text import one_line
from enhanced_checkpointing.cli.screen import one_size

__all__ = ["brief", "cut", "shown"]

_TEXTS = {"datetime", "UUID", "Decimal", "PosixPath", "Path", "WindowsPath", "ZoneInfo"}
"""Classes whose one argument says everything."""
_COLLECTIONS = {"set", "frozenset", "deque"}

MOST_ITEMS = 200
"""Of a list or a dict, of which a line is made that is cut anyway."""


def cut(text: str, most: int | None) -> str:
    """The beginning of a text, and how much more there is; all of it for None."""
    if most is None or len(text) <= most:
        return text
    return f"{text[:most].rstrip()}… ({len(text) - most:,} more characters)"


def brief(value: Any, most: int) -> str:
    """What a value begins with, on one line; of a dict its parts, without brackets."""
    value = unwrapped(value)
    if isinstance(value, dict):
        text = ", ".join(f"{shown(key)}: {shown(part, most)}" for key, part in [*value.items()][:MOST_ITEMS])
    else:
        text = shown(value, 4 * most)
    return text if len(text) <= most else f"{text[:most].rstrip()}…"


def shown(value: Any, most: int | None = None) -> str:
    """A value on one line: a text as it is, everything else as it would be written in Python."""
    value = unwrapped(value)
    limited = None if most is None else MOST_ITEMS
    return cut(one_line(value if isinstance(value, str) else _written(value, limited)), most)


def _written(value: Any, most: int | None) -> str:
    value = unwrapped(value)
    if isinstance(value, Described):
        return _object(value, most)
    if isinstance(value, Unreadable):
        return f"<not opened: {value.tag}, {one_size(value.size)}>"
    if isinstance(value, dict):
        parts = [f"{_written(key, most)}: {_written(part, most)}" for key, part in [*value.items()][:most]]
        return f"{{{_joined(parts, len(value))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{_joined([_written(part, most) for part in value[:most]], len(value))}]"
    if isinstance(value, (bytes, bytearray)):
        return f"<{one_size(len(value))} of binary data>"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


def _object(value: Described, most: int | None) -> str:
    content = value.content
    if value.name in _TEXTS and isinstance(content, str):
        return content
    if value.name in _COLLECTIONS and isinstance(content, (list, tuple)):
        return f"{{{_joined([_written(part, most) for part in content[:most]], len(content))}}}"
    if isinstance(content, dict):
        told = {key: part for key, part in content.items() if part not in (None, [], {}, "")}
        return f"{value.name}({', '.join(f'{key}={_written(part, most)}' for key, part in told.items())})"
    if isinstance(content, (list, tuple)):
        return f"{value.name}({', '.join(_written(part, most) for part in content)})"
    return f"{value.name}({_written(content, most)})"


def _joined(parts: list[str], total: int) -> str:
    more = [f"… {total - len(parts):,} more"] if total > len(parts) else []
    return ", ".join([*parts, *more])
