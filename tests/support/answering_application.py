"""An application that answers one path over HTTP, as `checkpointing health --url` asks one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def application(status: int, body: bytes, path: str = "/health") -> Iterator[str]:
    """Serves one answer over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] in (None, "Basic bWU6czNjcjN0")  # me:s3cr3t
            self.send_response(status if self.path == path and allowed else 404)
            self.end_headers()
            self.wfile.write(body if self.path == path and allowed else b"not here")

        def log_message(self, format: str, *arguments: object) -> None:
            """The test says enough."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
