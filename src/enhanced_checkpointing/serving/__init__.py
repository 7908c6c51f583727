"""Probes, metrics and a status page for an application to serve; and a hook for LangGraph's server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.manager import EnhancedCheckpointerManager

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

__all__ = ["checkpointing_app"]


def checkpointing_app(
    manager: EnhancedCheckpointerManager,
    *,
    name: str | None = None,
    authenticate: Callable[[Request], bool | Awaitable[bool]] | None = None,
) -> Starlette:
    """An ASGI application to mount where operators reach it: `app.mount("/checkpointing", checkpointing_app(manager))`.

    `/livez`, `/readyz`, `/health`, `/metrics`, and the status page at `/`, where this process is called `name`: its
    host and process id by default. It may be made before the manager is opened, and works after it is closed. From now
    on the manager remembers, in bounded memory, what the page shows; make one application per manager.

    The page, `/status.json`, `/health` and `/metrics` show thread ids and errors, though no secrets: they answer 401
    unless a request has the header `Authorization: Bearer …` with `CHECKPOINT_STATUS_TOKEN`, or `authenticate` answers
    True for it, at once or awaited. It may raise Starlette's `HTTPException` for another answer. Without both, they are
    open to all who reach them, as `/livez` and `/readyz` always are, for probes: those name no thread and no error.

    Raises:
        CheckpointerConfigurationError: a package of the extra `serving` is not installed.
    """
    for package in ("starlette", "jinja2", "prometheus_client"):
        try:
            import_module(package)  # by itself, so that no other missing module is taken for it
        except ImportError as missing:
            raise CheckpointerConfigurationError(
                f"checkpointing_app() needs {package}: pip install 'enhanced-checkpointing[serving]'"
            ) from missing
    from enhanced_checkpointing.web.app import make_app

    return make_app(manager, name, authenticate)
