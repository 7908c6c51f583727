"""A PostgreSQL server from any directory of binaries, that can be killed, frozen and restarted. Linux only.

`checkpointing demo` shows an outage with it, and the tests make their faults with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from enhanced_checkpointing.cli.postgres_binaries import (
    find_system_binaries,
    find_wheel_binaries,
    free_port,
    hand_over,
    reachable_temporary_directory,
    run_as_server_user,
    server_user,
    usable_binaries,
)
from enhanced_checkpointing.cli.server_processes import (
    command_line,
    freeze_each,
    processes_in,
    remove_leftovers,
    signal_each,
    start_watchdog,
    stop_watchdog,
    wait_until,
)

__all__ = ["LocalPostgres", "PostgresStartError", "find_system_binaries", "find_wheel_binaries"]

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_CLIENT_BACKEND = re.compile(rb"^postgres: .* 127\.0\.0\.1\(\d+\)")


class PostgresStartError(RuntimeError):
    """The server could not be made, started or stopped; the message ends with the last lines that it wrote."""


class LocalPostgres:
    """One cluster on 127.0.0.1 with a port that it keeps over restarts, and fsync on.

    `settings` are read at each start and may be changed in between. A cluster that is already in `data_directory`
    is used as it is and is kept by `close()`; one that was made here is removed. A directory with anything else in it
    is refused with a `ValueError`. The superuser is `postgres`.
    Started by root, the server runs as `nobody`, because PostgreSQL refuses to run as root.
    """

    def __init__(
        self,
        binaries: Path,
        *,
        data_directory: Path | None = None,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
    ) -> None:
        self.binaries = usable_binaries(Path(binaries).resolve())
        self.port = free_port()
        self.settings = dict(settings or {})
        self._password = password
        if data_directory is None:
            self._removable: Path | None = reachable_temporary_directory("postgres-")
            self.data_directory = self._removable / "data"
        else:
            self.data_directory = data_directory.resolve()
            has_cluster = (self.data_directory / "PG_VERSION").exists()
            if not has_cluster and self.data_directory.exists() and any(self.data_directory.iterdir()):
                raise ValueError(f"{self.data_directory} is neither empty nor a cluster: it is left alone")
            self._removable = None if has_cluster else self.data_directory
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The connection URL of `database`, with the password if there is one."""
        password = f":{quote(self._password, safe='')}" if self._password is not None else ""
        return f"postgresql://{quote(user, safe='')}{password}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    @property
    def log_path(self) -> Path:
        """The file that the server writes its log to."""
        return self.data_directory / "server.log"

    @property
    def process_id(self) -> int:
        """The postmaster's process id; raises `RuntimeError` when the server is not running."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def initialize(self) -> None:
        """Make the cluster, unless there is one; raises `PostgresStartError` with initdb's words."""
        self.data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        hand_over(self.data_directory)
        if (self.data_directory / "PG_VERSION").exists():
            return
        command = [str(self.binaries / "initdb"), "-D", str(self.data_directory), "-U", "postgres"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]  # the server syncs: a half-made cluster has no data
        with contextlib.ExitStack() as stack:
            if self._password is None:
                command.append("--auth=trust")
            else:
                folder = reachable_temporary_directory("postgres-password-")
                stack.callback(shutil.rmtree, folder)
                (folder / "password").write_text(self._password + "\n")
                hand_over(folder)
                command += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
            made = run_as_server_user(command)
        if made.returncode != 0:
            raise PostgresStartError(f"initdb failed in {self.data_directory}:\n{made.stdout}{made.stderr}")

    def start(self, timeout: float = 60.0) -> None:
        """Start and wait at most `timeout` seconds until a connection is accepted (crash recovery takes its time)."""
        if self._process is not None and self._process.poll() is None:
            raise RuntimeError("the server is already running")
        self.initialize()
        fixed = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on",
            "dynamic_shared_memory_type": "mmap",  # in the data directory: goes with it, also after a kill
        }
        arguments = [part for name, value in (self.settings | fixed).items() for part in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.binaries / "postgres"), "-D", str(self.data_directory), *arguments],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is for our process, which then stops the server
                umask=0o077,
                **server_user(),
            )
        if self._watchdog is None:
            self._watchdog = start_watchdog(self.data_directory, removes=self._removable)
        self._wait_until_ready(self._process, timeout)

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Shut down ("smart", "fast" or "immediate"); a stopped server stays stopped."""
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise PostgresStartError(f"the server did not stop in {timeout} s:\n{self._log_tail()}") from None
        self._process = None

    def kill(self) -> None:
        """Crash the server as by `kill -9`, frozen or not; nothing stays, so that `start()` can recover at once."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        # Repeated, as the postmaster may have forked meanwhile: with one child alive the next start would refuse.
        wait_until(lambda: not signal_each(self._processes(), signal.SIGKILL), "the killed processes to end")
        self._process = None
        remove_leftovers(self.data_directory)

    def freeze(self) -> None:
        """Hang the whole server: the kernel still accepts connections, nobody answers."""
        freeze_each([self.process_id])  # first: it forks no more
        freeze_each(self._processes())

    def thaw(self) -> None:
        """Let the frozen processes go on where they were."""
        signal_each(self._processes(), signal.SIGCONT)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start on the same port."""
        self.stop(mode)
        self.start()

    def backend_process_ids(self) -> list[int]:
        """The processes that serve a client's connection, in ascending order."""
        return sorted(pid for pid in self._processes() if _CLIENT_BACKEND.match(command_line(pid)))

    def freeze_backend(self, pid: int) -> None:
        """Hang one process of the server; the others go on."""
        freeze_each([self._owned(pid)])

    def thaw_backend(self, pid: int) -> None:
        """Let a frozen process of the server go on."""
        os.kill(self._owned(pid), signal.SIGCONT)

    def kill_backend(self, pid: int) -> None:
        """Kill one process of the server, which then ends all its sessions and recovers by itself."""
        os.kill(self._owned(pid), signal.SIGKILL)

    def close(self) -> None:
        """End the server, also a frozen one, and remove a cluster that was made here."""
        if self._removable is None:
            self.stop()
        else:
            self.kill()
            if self._removable.exists():
                shutil.rmtree(self._removable)
        if self._watchdog is not None:
            stop_watchdog(self._watchdog)
            self._watchdog = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait_until_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while process.poll() is None:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    message = f"the server is not ready after {timeout} s: {error}\n{self._log_tail()}"
                    raise PostgresStartError(message) from error
                time.sleep(0.02)
            else:
                return
        self._process = None
        raise PostgresStartError(f"the server ended with exit code {process.returncode}:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-20:])

    def _processes(self) -> list[int]:
        return processes_in(self.data_directory)

    def _owned(self, pid: int) -> int:
        if pid not in self._processes():
            raise ValueError(f"{pid} is not a process of this server")
        return pid
