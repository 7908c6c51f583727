"""The ASGI application: its paths, and who may see them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from inspect import isawaitable
from socket import gethostname
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enhanced_checkpointing.errors import CheckpointerError
from enhanced_checkpointing.manager import EnhancedCheckpointerManager
from enhanced_checkpointing.observability.recent import Recent
from enhanced_checkpointing.web.metrics import CONTENT_TYPE, exposition
from enhanced_checkpointing.web.page import CONTENT_SECURITY_POLICY, page, update
from enhanced_checkpointing.web.view import View, look

FRESH_SECONDS = 1.0
"""Seconds for which a check is fresh: any number of requests probes the primary once."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Defaults for every answer."""

Authenticate: TypeAlias = Callable[[Request], bool | Awaitable[bool]]
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def make_app(
    manager: EnhancedCheckpointerManager, name: str | None = None, authenticate: Authenticate | None = None
) -> Starlette:
    """See `checkpointing_app`."""
    recent = Recent()
    manager.listen(recent)
    endpoints = Endpoints(manager, recent, name)
    token = manager.config.status_token
    access = Access(token.get_secret_value() if token is not None else None, authenticate)
    app = Starlette(
        routes=[
            Route("/", access.protect(endpoints.page)),
            Route("/status.json", access.protect(endpoints.update)),
            Route("/livez", endpoints.alive),
            Route("/readyz", endpoints.ready),
            Route("/health", access.protect(endpoints.health)),
            Route("/metrics", access.protect(endpoints.metrics)),
        ],
        middleware=[Middleware(_Headers)],
    )
    app.state.recent = recent
    return app


class Access:
    """Protects what names threads and errors: by the token, or by the application's own check."""

    def __init__(self, token: str | None, authenticate: Authenticate | None) -> None:
        self._bearer = None if token is None else f"Bearer {token}".encode()
        self._authenticate = authenticate

    def protect(self, endpoint: Endpoint) -> Endpoint:
        if self._bearer is None and self._authenticate is None:
            return endpoint

        async def answer(request: Request) -> Response:
            if await self._lets_in(request):
                return await endpoint(request)
            return PlainTextResponse(
                "401: this needs a token\n", 401, {"WWW-Authenticate": 'Bearer realm="checkpointing"'}
            )

        return answer

    async def _lets_in(self, request: Request) -> bool:
        given = request.headers.get("Authorization", "").encode("latin-1")
        if self._bearer is not None and compare_digest(given, self._bearer):
            return True
        told = self._authenticate(request) if self._authenticate is not None else False
        return bool(await told if isawaitable(told) else told)


class _Headers:
    """Security headers on every answer; a redirect stays on the host that the request named."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if "Location" in headers:
                    to = urlsplit(headers["Location"])
                    headers["Location"] = urlunsplit(("", "", f"/{to.path.lstrip('/')}", to.query, ""))
            await send(message)

        await self._app(scope, receive, with_headers)


class Endpoints:
    """Everything but `/health?fresh=1` is answered from memory."""

    def __init__(self, manager: EnhancedCheckpointerManager, recent: Recent, name: str | None) -> None:
        self._manager = manager
        self._recent = recent
        self._name = name
        self._checking = asyncio.Lock()
        self._checked_at = float("-inf")

    async def alive(self, request: Request) -> Response:
        """The process answers. It checks nothing else: a restart mends no database, and makes threads unreadable."""
        return PlainTextResponse("alive\n")

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
        return Response(exposition(self._recent), headers={"Content-Type": CONTENT_TYPE})

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page(self._view()), headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY})

    async def update(self, request: Request) -> Response:
        """The same as JSON, which an open page polls."""
        return JSONResponse(update(self._view()))

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
        """Check, unless a check has just ended. Concurrent requests share one check."""
        async with self._checking:
            if time.monotonic() - self._checked_at < FRESH_SECONDS:
                return
            try:
                await self._manager.health_check()
            except CheckpointerError:
                return  # it is being closed: the report says so
            self._checked_at = time.monotonic()


def _report(report: dict[str, Any]) -> Response:
    return JSONResponse(report, 503 if report["overall_status"] == "unhealthy" else 200)
