"""Which file system a directory is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from enhanced_checkpointing.journal.disk import (
    MOUNTS,
    NETWORK,
    filesystem_of,
    memory_filesystem,
    network_filesystem,
)

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:20 / /data rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
24 23 8:2 / /data/local rw,relatime - xfs /dev/sdb1 rw
25 22 0:21 / /with\040space rw,relatime shared:3 master:1 - cifs //server/share rw
26 22 0:22 / /twice rw - ext4 /dev/sdc1 rw
27 26 0:23 / /twice rw - fuse.sshfs somebody@server:/ rw
""".strip()


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", "ext4"),
        ("/home/app/journal", "ext4"),
        ("/data", "nfs4"),
        ("/data/journal", "nfs4"),
        ("/data/local/journal", "xfs"),
        ("/database", "ext4"),
        ("/with space/journal", "cifs"),
        ("/twice/journal", "fuse.sshfs"),
    ],
)
def test_longest_mount_point_above_a_directory_tells(directory: str, kind: str) -> None:
    assert filesystem_of(Path(directory), MOUNTINFO) == kind


def test_directory_above_which_nothing_is_mounted_is_on_no_file_system() -> None:
    assert filesystem_of(Path("/elsewhere"), "23 22 0:20 / /data rw - nfs4 server:/export rw") is None


@pytest.mark.parametrize(("directory", "kind"), [("/data/journal", "nfs4"), ("/data/local/x", None), ("/x", None)])
def test_only_network_file_systems_are_named(tmp_path: Path, directory: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTINFO)
    assert network_filesystem(Path(directory), mounts) == kind


@pytest.mark.parametrize(("directory", "kind"), [("/shm/journal", "tmpfs"), ("/data/journal", None), ("/x", None)])
def test_only_file_systems_in_memory_are_named(tmp_path: Path, directory: str, kind: str | None) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"{MOUNTINFO}\n28 22 0:24 / /shm rw - tmpfs tmpfs rw\n")
    assert memory_filesystem(Path(directory), mounts) == kind


def test_where_there_is_no_list_of_mounts_it_cannot_be_told(tmp_path: Path) -> None:
    assert network_filesystem(tmp_path, tmp_path / "missing") is None
    assert memory_filesystem(tmp_path, tmp_path / "missing") is None


def test_links_are_followed(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:2 / {tmp_path}/far rw - nfs server:/ rw\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert network_filesystem(tmp_path / "near", mounts) == "nfs"


@pytest.mark.skipif(not MOUNTS.exists(), reason="only Linux lists its mounts there")
def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    assert filesystem_of(tmp_path, MOUNTS.read_text()) not in NETWORK
    assert network_filesystem(tmp_path) is None
