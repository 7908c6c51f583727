"""What another user of the machine can put where the journal is: nothing of it is read, changed or waited for."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.private_files import UntrustedFileError
from tests.support.checkpointer import opened, saver_of, sqlite
from tests.support.checkpoints import Thread
from tests.support.disks import folder_without_root
from tests.support.journals import add, opened_journal
from tests.support.postgres import require_or_skip
from tests.support.terminal import assert_named, command, doctor

BOOK = f"{1:032x}"
SECRET = b"the diary of another user\n" * 50

COMMANDS = [("status",), ("drain",), ("dead-letters",), ("quarantine",), ("retry", "--all")]

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that every user of the machine reaches, and in which this one alone may write."""
    with folder_without_root() as folder:
        os.chown(folder, os.geteuid(), os.getegid())
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def victim(base: Path) -> Path:
    """A private file of this user, which the other one cannot read."""
    file = base / "victim"
    file.write_bytes(SECRET)
    file.chmod(0o600)
    return file


def by_another_user(script: str, folder: Path) -> None:
    """Run a script of the shell there as a user who is not this one."""
    if os.geteuid() != 0:
        require_or_skip("only root may become another user: run the tests as root")
    subprocess.run(["/bin/sh", "-ec", script], cwd=folder, check=True, user="nobody", group="nogroup", extra_groups=[])


def content(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What there is below a folder: modes, links, and bytes of regular files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
        found[str(path.relative_to(folder))] = (seen.st_mode, seen.st_ino, data)
    return found


def start(directory: Path) -> None:
    async def starting() -> None:
        async with opened(sqlite("a.sqlite", journal_dir=directory, environment="production")):
            pass

    asyncio.run(starting())


def refused(directory: Path, what: str) -> None:
    """A start with this directory and each command refuse it in words, and nothing below it is changed."""
    before = content(directory)
    with pytest.raises(CheckpointerConfigurationError, match=rf"cannot be trusted \(.*{what}.*nothing in it was read"):
        start(directory)
    for words in COMMANDS:
        ended = command("journal", *words, "--journal-dir", directory, SQLITE_PATH="a.sqlite")
        assert ended.code != 0
        assert what in " ".join((ended.out + ended.err).split()), (words, ended)
    report = command("doctor", "--json", "--journal-dir", directory, "--sqlite", "a.sqlite").report
    assert any(what in each["what"] for each in report["findings"] if each["status"] == "failed"), report
    asked = command("health", "--json", "--journal-dir", directory, "--sqlite", "a.sqlite")
    assert asked.code == 1
    assert what in asked.out
    assert content(directory) == before


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o2777])
def test_directory_that_other_users_may_write_is_refused_by_name(base: Path, mode: int) -> None:
    directory = base / "journal"
    directory.mkdir()
    directory.chmod(mode)
    refused(directory, "other users may write it")


def test_directory_of_another_user_is_refused_by_name(base: Path) -> None:
    base.chmod(0o777)
    by_another_user("mkdir -m 755 journal", base)
    refused(base / "journal", "it belongs to user nobody")


def test_link_of_another_user_to_a_directory_of_ours_is_refused_by_name(base: Path) -> None:
    (base / "ours").mkdir(0o700)
    base.chmod(0o777)
    by_another_user("ln -s ours journal", base)
    refused(base / "journal", "it is a link of user nobody")


def test_link_of_ours_is_followed_and_what_kubernetes_gives_is_used(base: Path) -> None:
    directory = base / "volume"
    directory.mkdir()
    directory.chmod(0o2775)
    (base / "journal").symlink_to("volume")
    start(base / "journal")
    assert os.listdir(directory) == []


async def left_behind(directory: Path) -> None:
    """A record of a process that is gone."""
    async with opened_journal(directory) as journal:
        await add(journal, "a")


def link(name: str) -> Callable[[Path, Path], None]:
    return lambda directory, victim: (directory / name).symlink_to(victim)


def hard_link(name: str) -> Callable[[Path, Path], None]:
    """By ourselves: this kernel may be set to refuse it to others, and may not be."""
    return lambda directory, victim: os.link(victim, directory / name)


def pipe(name: str) -> Callable[[Path, Path], None]:
    return lambda directory, _: os.mkfifo(directory / name)


def plug(name: str) -> Callable[[Path, Path], None]:
    def make(directory: Path, _: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(directory / name))

    return make


def foreign(name: str) -> Callable[[Path, Path], None]:
    def make(directory: Path, _: Path) -> None:
        directory.chmod(0o777)
        by_another_user(f"echo forged > {name}", directory)
        directory.chmod(0o755)

    return make


def open_to_all(name: str) -> Callable[[Path, Path], None]:
    def make(directory: Path, _: Path) -> None:
        (directory / name).touch()
        (directory / name).chmod(0o666)

    return make


@pytest.mark.parametrize(
    ("plant", "what", "names"),
    [
        (link, "it is a link", (".lock", ".spare", ".000001.journal")),
        (hard_link, "it is a hard link", (".lock", ".000001.journal")),
        (pipe, "it is no regular file", (".lock", ".000001.journal")),
        (plug, "it is no regular file", (".lock",)),
        (foreign, "it belongs to user nobody", (".000001.journal",)),
        (open_to_all, "other users may write it", (".000001.journal",)),
    ],
)
def test_planted_file_is_refused_by_name_and_neither_read_nor_changed(
    base: Path, victim: Path, plant: Callable[[str], Callable[[Path, Path], None]], what: str, names: tuple[str, ...]
) -> None:
    for name in names:
        directory = base / f"journal{name}"
        directory.mkdir(0o755)
        if name != ".lock":
            (directory / f"{BOOK}.lock").touch(0o600)
        plant(f"{BOOK}{name}")(directory, victim)
        if name == ".spare":
            with pytest.raises(CheckpointerConfigurationError, match=what):
                start(directory)
        else:
            refused(directory, what)
        assert victim.read_bytes() == SECRET
        assert not (directory / "quarantine").exists()


def test_file_that_is_none_of_the_journals_is_ignored_whatever_it_is(base: Path, victim: Path) -> None:
    directory = base / "journal"
    directory.mkdir(0o755)
    link("stray")(directory, victim)
    pipe("pipe")(directory, victim)
    start(directory)
    assert victim.read_bytes() == SECRET
    assert "stray" in command("journal", "status", "--journal-dir", directory).out


@pytest.mark.parametrize("planted", ["partial", "folder"])
def test_link_in_the_way_of_a_copy_to_quarantine_overwrites_nothing(base: Path, victim: Path, planted: str) -> None:
    directory = base / "journal"
    asyncio.run(left_behind(directory))
    (file,) = directory.glob("*.journal")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    (base / "elsewhere").mkdir(0o777)
    if planted == "folder":
        (directory / "quarantine").symlink_to(base / "elsewhere")
    else:
        (directory / "quarantine").mkdir(0o700)
        (directory / "quarantine" / f"{file.name}.partial").symlink_to(victim)
    with suppress(CheckpointerConfigurationError):
        start(directory)
    assert victim.read_bytes() == SECRET
    assert os.listdir(base / "elsewhere") == []
    if planted == "partial":
        assert (directory / "quarantine" / file.name).read_bytes() == data


def test_lock_of_retention_follows_no_link(base: Path, victim: Path) -> None:
    assert command("setup", "--sqlite", base / "a.sqlite").code == 0
    missing = base / "missing"
    (base / "a.sqlite.retention.lock").symlink_to(missing)
    command("retention", "run", "--sqlite", base / "a.sqlite", CHECKPOINT_RETENTION="on")
    assert not missing.exists()


def modes(folder: Path) -> dict[str, int]:
    """The modes of all that is below a folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


async def written(here: Path) -> dict[str, int]:
    async with opened(sqlite(here / "some/data/a.sqlite", journal_dir=here / "other/journal")) as manager:
        await Thread(saver_of(manager), "a").put()
        seen = modes(here)
    await left_behind(here / "other/journal")
    return seen | modes(here)


async def adopted(directory: Path) -> None:
    async with opened_journal(directory):
        pass


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_all_that_is_written_is_for_nobody_else_whatever_the_umask(umask: int) -> None:
    here = Path("work")
    here.mkdir()
    before = os.umask(umask)
    try:
        seen = asyncio.run(written(here))
        assert {"some/data/a.sqlite", "some/data/a.sqlite-wal", "some/data/a.sqlite-shm"} <= seen.keys()
        assert command("export", here / "some/data/a.sqlite", here / "all.jsonl").code == 0
        assert command("retention", "run", "--sqlite", here / "some/data/a.sqlite").code == 0
        for file in (here / "other/journal").glob("*.journal"):
            file.write_bytes(file.read_bytes()[:-1] + b"x")
        asyncio.run(adopted(here / "other/journal"))
        seen |= modes(here)
        command("journal", "quarantine", "--journal-dir", here / "other/journal", "--copy-to", here / "out/copies")
        seen |= modes(here)
    finally:
        os.umask(before)
    assert any(name.startswith("other/journal/quarantine/") for name in seen)
    assert any(name.startswith("out/copies/quarantine/") for name in seen)
    assert "all.jsonl" in seen
    assert {name: oct(mode) for name, mode in seen.items() if mode & 0o077} == {}


def test_doctor_names_the_files_that_other_users_can_read_and_the_folders_that_they_can_write(base: Path) -> None:
    folder, journal = base / "data", base / "state/journal"
    asyncio.run(put_once(folder / "a.sqlite", journal))
    export = base / "all.jsonl"
    where = ("--sqlite", folder / "a.sqlite", "--journal-dir", journal)
    assert command("export", folder / "a.sqlite", export, CHECKPOINT_JOURNAL_DIR=str(journal)).code == 0
    asyncio.run(left_behind(journal))
    sound = doctor(*where)
    assert sound.finding("files.readers")["status"] == sound.finding("files.folders")["status"] == "fine"
    (book,) = journal.glob("*.journal")
    for opened_up, mode in ((folder / "a.sqlite", 0o644), (book, 0o640), (export, 0o604)):
        opened_up.chmod(mode)
        found = doctor(*where)
        assert_named(found, "files.readers", status="warning", what=str(opened_up), fix="chmod go= ")
        opened_up.chmod(0o600)
    for opened_up, mode, trusted in ((folder, 0o1777, 0o700), (journal.parent, 0o777, 0o1777), (base, 0o775, 0o755)):
        opened_up.chmod(mode)
        assert_named(doctor(*where), "files.folders", status="warning", what=f"{opened_up}", fix="chmod go-w ")
        opened_up.chmod(trusted)
    for shared in (base, folder):  # as Kubernetes' fsGroup makes them
        shared.chmod(0o2775)
    (folder / "a.sqlite").chmod(0o660)
    assert {doctor(*where).finding(f"files.{name}")["status"] for name in ("readers", "folders")} == {"fine"}


async def put_once(path: Path, journal: Path) -> None:
    async with opened(sqlite(path, journal_dir=journal)) as manager:
        await Thread(saver_of(manager), "a").put()


def test_disk_opens_a_socket_or_a_pipe_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UntrustedFileError, match="no regular file"):
        RealDisk(tmp_path).open("pipe")
    assert not RealDisk(tmp_path).is_taken("missing")
