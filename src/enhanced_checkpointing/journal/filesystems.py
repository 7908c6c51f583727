"""Which kind of file system a directory is on. On a network a lock may be a promise of one machine only."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ocfs2", "gfs2", "beegfs"}
    | {"fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "ncpfs", "davfs"}
)

IN_MEMORY = frozenset({"tmpfs", "ramfs"})

MOUNTS = Path("/proc/self/mountinfo")


def network_filesystem(directory: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of network file system that a directory is on; None on a local one, and where it cannot be told."""
    return _one_of(NETWORK, directory, mounts)


def memory_filesystem(directory: Path, mounts: Path = MOUNTS) -> str | None:
    """The kind of file system in memory that a directory is on; None on a disk, and where it cannot be told."""
    return _one_of(IN_MEMORY, directory, mounts)


def _one_of(kinds: Set[str], directory: Path, mounts: Path) -> str | None:
    if not mounts.exists():
        return None
    kind = filesystem_of(directory.resolve(), mounts.read_text())
    return kind if kind in kinds else None


def filesystem_of(directory: Path, mountinfo: str) -> str | None:
    """The kind of file system of the longest mount point above `directory`, in Linux's own words. Pure."""
    found: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if directory.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), after.split()[0]
    return found[1] if found is not None else None
