"""Files that were moved, and what they leave behind."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from enhanced_checkpointing.backends.sqlite.file import OrphanedLogError, check_log, orphaned_log

FILE, LOG = Path("file.sqlite"), Path("file.sqlite-wal")


@pytest.mark.parametrize("left", ["nothing", "an empty file"])
def test_log_is_an_orphan_where_its_file_has_gone_or_is_empty(left: str) -> None:
    LOG.write_bytes(b"log")
    if left == "an empty file":
        FILE.touch()
    assert orphaned_log(str(FILE)) == str(LOG.absolute())
    with pytest.raises(OrphanedLogError, match=r"file\.sqlite is (not there|empty), but its log is there: .*-wal"):
        check_log(str(FILE))


def test_log_of_a_link_is_beside_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Path("link.sqlite").symlink_to(tmp_path / "folder" / FILE)
    assert orphaned_log("link.sqlite") is None
    (tmp_path / "folder" / LOG).write_bytes(b"log")
    assert orphaned_log("link.sqlite") == str(tmp_path / "folder" / LOG)


@pytest.mark.parametrize(("file", "log"), [(b"data", b"log"), (None, b""), (None, None), (b"", b"")])
def test_no_log_no_orphan(file: bytes | None, log: bytes | None) -> None:
    for path, data in ((FILE, file), (LOG, log)):
        if data is not None:
            path.write_bytes(data)
    check_log(str(FILE))


OPEN_AND_CLOSE = """
import sqlite3
for number in range(10**9):
    connection = sqlite3.connect("file.sqlite")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("CREATE TABLE IF NOT EXISTS one (number INTEGER)")
    connection.execute("INSERT INTO one VALUES (?)", (number,))
    connection.commit()
    connection.close()
    if number == 0:
        print("begun", flush=True)
"""


def test_log_that_another_process_makes_and_removes_meanwhile_is_no_orphan(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-S", "-c", OPEN_AND_CLOSE], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"begun\n"
        for _ in range(50_000):
            check_log(str(FILE))
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


def test_sqlite_drops_such_a_log_indeed() -> None:
    """Why all this is there: if this fails, SQLite has learned better."""
    with closing(sqlite3.connect("other.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE one (number INTEGER)")
        LOG.write_bytes(Path("other.sqlite-wal").read_bytes())
    with closing(sqlite3.connect(FILE)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert not LOG.exists()
