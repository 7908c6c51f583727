"""A real PgBouncer in transaction mode in front of a server, that can be killed and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from enhanced_checkpointing.cli.demo.postgres_server import (
    free_port,
    hand_over,
    reachable_temporary_directory,
    server_user,
)
from tests.support.postgres import require_or_skip


class PgBouncer:
    """Hands the `pool_size` connections to the server of `url` out by the transaction."""

    def __init__(self, url: str, pool_size: int = 5) -> None:
        found = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
        if found is None:
            require_or_skip("no PgBouncer: `apt-get install pgbouncer`")
        self._program = found
        self._url = urlsplit(url)
        self._pool_size = pool_size
        self.port = free_port()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The same database, through the pooler."""
        user, at, _ = self._url.netloc.rpartition("@")
        return urlunsplit(self._url._replace(netloc=f"{user}{at}127.0.0.1:{self.port}"))

    def start(self) -> None:
        """Start it and wait until it listens."""
        assert self._folder is not None
        command = [self._program, str(self._folder / "pgbouncer.ini")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **server_user())
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """End it as by `kill -9`: every client's connection breaks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self._folder = reachable_temporary_directory("pgbouncer-")
        user = self._url.username or "postgres"
        password = f" password={self._url.password}" if self._url.password else ""
        database = f"host={self._url.hostname} port={self._url.port or 5432} user={user}{password}"
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": self._pool_size,
            "max_client_conn": 200,
        }
        lines = ["[databases]", f"* = {database}", "[pgbouncer]", *(f"{name} = {settings[name]}" for name in settings)]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        hand_over(self._folder, force=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        assert self._folder is not None
        shutil.rmtree(self._folder)
