"""Real faults of disks and files: one that is full, and modes that bind although the tests run as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enhanced_checkpointing.cli.demo.postgres_server import reachable_temporary_directory
from tests.support.postgres import require_or_skip


@contextmanager
def folder_without_root() -> Iterator[Path]:
    """A folder of somebody who has no more rights than its mode gives, which root ignores; with `bound_by_modes`."""
    folder = reachable_temporary_directory("without-root-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """Give up root's rights for as long as the block runs."""
    if os.geteuid() != 0:
        yield
        return
    nobody = pwd.getpwnam("nobody")
    os.setegid(nobody.pw_gid)
    os.seteuid(nobody.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def set_modes(folder: Path, files: int, itself: int) -> None:
    """Set the mode of a folder's files and of the folder."""
    for file in folder.iterdir():
        file.chmod(files)
    folder.chmod(itself)


@contextmanager
def small_disk(folder: Path, megabytes: int = 2) -> Iterator[Path]:
    """A new folder that is a disk of so many megabytes; skips (in CI: fails) where none can be mounted."""
    folder.mkdir()
    if os.geteuid() != 0:
        require_or_skip("only root may mount a small disk: run the tests as root")
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        require_or_skip(f"a small disk cannot be mounted here (CAP_SYS_ADMIN is needed): {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave not a single block of the disk free."""
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def make_room(disk: Path) -> None:
    """Free what `fill` took."""
    (disk / "filler").unlink()
