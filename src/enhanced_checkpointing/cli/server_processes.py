"""Signals to the processes of one server, found through /proc. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = [
    "command_line",
    "freeze_each",
    "processes_in",
    "remove_leftovers",
    "signal_each",
    "start_watchdog",
    "stop_watchdog",
    "wait_until",
]

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


def processes_in(directory: Path) -> list[int]:
    """Every server process whose working directory is `directory`; orphans of a killed postmaster too, zombies not."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _works_in(int(name), directory)]


def command_line(pid: int) -> bytes:
    """The title that the process shows; empty when it ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _works_in(pid: int, directory: Path) -> bool:
    try:
        # The name, as /proc/<pid>/exe vanishes while a dying process still holds its memory and its sockets.
        same_name = Path(f"/proc/{pid}/comm").read_text() == "postgres\n"
        return same_name and os.readlink(f"/proc/{pid}/cwd") == str(directory)
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or it is somebody else's
        return False


def _is_stopped(pid: int) -> bool:
    """Whether SIGSTOP took effect; a process that ended meanwhile counts too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "TtZX"


def signal_each(pids: Iterable[int], number: signal.Signals) -> list[int]:
    """Signal every process that still lives, and say which."""
    signalled = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            signalled.append(pid)
    return signalled


def freeze_each(pids: Iterable[int]) -> None:
    """Stop the processes (SIGSTOP) and wait until they are."""
    stopped = signal_each(pids, signal.SIGSTOP)
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
