"""Which file system a directory is on."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from enhanced_checkpointing.journal.disk import memory_filesystem, network_filesystem

MOUNTS = {
    "/": "ext4",
    "/data": "nfs4",
    "/data/local": "xfs",
    "/with space": "cifs",
    "/twice": "ext4",
    "/shm": "tmpfs",
}


class Mount:
    """What psutil says of one."""

    def __init__(self, mountpoint: str, fstype: str) -> None:
        self.mountpoint, self.fstype = mountpoint, fstype


def mounted(monkeypatch: pytest.MonkeyPatch, *more: Mount) -> None:
    mounts = [*(Mount(point, kind) for point, kind in MOUNTS.items()), *more]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts if all else [])


@pytest.mark.parametrize(
    ("directory", "network", "memory"),
    [
        ("/", None, None),
        ("/home/app/journal", None, None),
        ("/data", "nfs4", None),
        ("/data/journal", "nfs4", None),
        ("/data/local/journal", None, None),
        ("/database", None, None),
        ("/with space/journal", "cifs", None),
        ("/twice/journal", "fuse.sshfs", None),
        ("/shm/journal", None, "tmpfs"),
    ],
)
def test_longest_mount_point_above_a_directory_tells_and_the_last_of_those_on_one_point(
    monkeypatch: pytest.MonkeyPatch, directory: str, network: str | None, memory: str | None
) -> None:
    mounted(monkeypatch, Mount("/twice", "fuse.sshfs"))
    assert network_filesystem(Path(directory)) == network
    assert memory_filesystem(Path(directory)) == memory


def test_where_nothing_is_known_to_be_mounted_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Mount("/data", "nfs4")])
    assert network_filesystem(Path("/elsewhere")) is None
    assert memory_filesystem(Path("/elsewhere")) is None


def test_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, Mount(f"{tmp_path}/far", "nfs"))
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert network_filesystem(tmp_path / "near") == "nfs"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux has memory there")
def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    assert network_filesystem(tmp_path) is None
    assert memory_filesystem(Path("/dev/shm")) == "tmpfs"
