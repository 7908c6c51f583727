"""Finds backends by name, ours included, through the entry-point group `enhanced_checkpointing.backends`."""

from __future__ import annotations

from importlib.metadata import entry_points

from enhanced_checkpointing.backends.base import Backend
from enhanced_checkpointing.errors import CheckpointerConfigurationError

GROUP = "enhanced_checkpointing.backends"


def find_backend(name: str) -> type[Backend]:
    """Return the backend class registered under `name`.

    Raises:
        CheckpointerConfigurationError: nothing is registered under that name, or it cannot be imported, or is no
            `Backend`.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        known = ", ".join(sorted({entry.name for entry in entry_points(group=GROUP)})) or "none"
        raise CheckpointerConfigurationError(
            f"CHECKPOINT_CHECKPOINTER_TYPE names the backend {name!r}, which no installed package registers "
            f"(known: {known}). Install the package that brings it, or choose one of these. Nothing was opened."
        )
    entry = next(iter(found))
    try:
        backend = entry.load()
    except (ImportError, AttributeError) as error:
        raise CheckpointerConfigurationError(
            f"The backend {name!r} ({entry.value}) cannot be imported: {error}. Install what it needs. "
            "Nothing was opened."
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise CheckpointerConfigurationError(
            f"The entry point {name!r} ({entry.value}) is not a subclass of "
            "enhanced_checkpointing.backends.base.Backend. Nothing was opened."
        )
    return backend
