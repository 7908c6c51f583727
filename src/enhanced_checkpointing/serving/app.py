"""The ASGI application: each path, and what is asked of the manager for it."""

from __future__ import annotations

import asyncio
import os
import time
from socket import gethostname
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.manager import EnhancedCheckpointerManager
from enhanced_checkpointing.serving.page import CONTENT_SECURITY_POLICY, page, update
from enhanced_checkpointing.serving.prometheus import CONTENT_TYPE, exposition
from enhanced_checkpointing.serving.view import View, look
from enhanced_checkpointing.telemetry.recent import Recent

FRESH_SECONDS = 1.0
"""A check that ended less than this ago is fresh: however many ask, the primary is probed once."""

_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def make_app(manager: EnhancedCheckpointerManager, name: str | None) -> Starlette:
    """See `checkpointing_app`."""
    recent = Recent()
    manager.listen(recent)
    endpoints = Endpoints(manager, recent, name)
    app = Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/status.json", endpoints.update),
            Route("/livez", endpoints.alive),
            Route("/readyz", endpoints.ready),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
        ]
    )
    app.state.recent = recent
    return app


class Endpoints:
    """Everything but `/health?fresh=1` is answered from memory."""

    def __init__(self, manager: EnhancedCheckpointerManager, recent: Recent, name: str | None) -> None:
        self._manager = manager
        self._recent = recent
        self._name = name
        self._checking = asyncio.Lock()
        self._checked_at = float("-inf")

    async def alive(self, request: Request) -> Response:
        """The process answers. Nothing else: a restart mends no database, and makes threads unreadable."""
        return PlainTextResponse("alive\n", headers=_HEADERS)

    async def ready(self, request: Request) -> Response:
        """503 only if writes are refused; a degraded process must stay in service."""
        health = self._manager.health_status
        told = {
            "overall_status": health["overall_status"],
            "primary_healthy": health["primary_healthy"],
            "journal_pending": health["journal"]["pending"],
        }
        return _report(told)

    async def health(self, request: Request) -> Response:
        """The whole report; with `?fresh=1` after a probe of the primary, which takes at most the deadline."""
        if request.query_params.get("fresh", "") not in ("", "0", "false"):
            await self._check()
        return _report(self._manager.health_status)

    async def metrics(self, request: Request) -> Response:
        return Response(exposition(self._recent), headers={**_HEADERS, "Content-Type": CONTENT_TYPE})

    async def page(self, request: Request) -> Response:
        return HTMLResponse(
            page(self._view()),
            headers={
                **_HEADERS,
                "Content-Security-Policy": CONTENT_SECURITY_POLICY,
                "Referrer-Policy": "no-referrer",
            },
        )

    async def update(self, request: Request) -> Response:
        """What an open page asks for again and again."""
        return JSONResponse(update(self._view()), headers=_HEADERS)

    def _view(self) -> View:
        manager = self._manager
        return look(
            self._recent,
            manager.health_status,
            manager.dead_letters,
            name=self._name or f"{gethostname()}, process {os.getpid()}",  # not kept: a server may fork
            enabled=manager.config.enabled,
            now=time.time(),
        )

    async def _check(self) -> None:
        """Check, unless somebody else just did; who comes meanwhile waits for that one."""
        async with self._checking:
            if time.monotonic() - self._checked_at < FRESH_SECONDS:
                return
            try:
                await self._manager.health_check()
            except CheckpointerError:
                return  # it is being closed: the report says so
            self._checked_at = time.monotonic()


def _report(report: dict[str, Any]) -> Response:
    return JSONResponse(report, 503 if report["overall_status"] == "unhealthy" else 200, _HEADERS)
