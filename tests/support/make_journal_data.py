"""Makes the journal that the tests read back for ever: `python -m tests.support.make_journal_data FOLDER [signed]`.

Run once for each version of the format, when that is new. What was made is never made again.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from unittest.mock import patch

from enhanced_checkpointing.journal import log_file as log
from enhanced_checkpointing.journal.api import UNKNOWN
from enhanced_checkpointing.journal.format import Signer
from enhanced_checkpointing.operations import DeleteThread, Operation, Put, PutWrites
from enhanced_checkpointing.serialization import Serialized
from enhanced_checkpointing.testing import FakeClock
from tests.support.journals import add, durable_journal

WRITTEN_AT = 1_700_000_000.0
SIGNER = Signer("the key of the journal that is kept for the tests")
"""Of format 2, the signed one."""
PROFILE = Serialized("msgpack", b"\x92\xa3Ada\xa8Lovelace")

FIRST = Put(
    thread_id="thread ü",
    checkpoint_ns="",
    checkpoint_id="1f000000-0000-6000-8000-000000000001",
    parent_checkpoint_id=None,
    skeleton={
        "v": 4,
        "id": "1f000000-0000-6000-8000-000000000001",
        "ts": "2026-01-01T00:00:00+00:00",
        "channel_versions": {"profile": "1.0", "n": "1.0", "delta": "1.0"},
        "versions_seen": {"node": {"profile": "1.0"}},
        "updated_channels": None,
    },
    values={"profile": PROFILE, "n": 1, "text": "naïve", "none": None},
    metadata={"source": "loop", "step": 1, "parents": {}},
    new_versions={"profile": "1.0", "n": "1.0"},
    snapshot_channels=frozenset({"profile"}),
)
WRITES = PutWrites(
    thread_id="thread ü",
    checkpoint_ns="child|1",
    checkpoint_id="1f000000-0000-6000-8000-000000000002",
    writes=(("n", Serialized("msgpack", b"\x02")), ("zeros", Serialized("bytes", bytes(2000)))),
    task_id="task",
    task_path="~path",
)
PENDING: dict[str, list[Operation]] = {
    "thread ü": [FIRST, WRITES, DeleteThread("thread ü")],
    "refused": [DeleteThread("refused"), DeleteThread("refused")],
    "diverted": [DeleteThread("diverted")],
}
"""What is pending in it, by thread; the first of `refused` is a dead letter."""


async def make(folder: Path, signer: Signer | None = None) -> None:
    """Several files of one process that was killed, with every kind of frame in them."""
    journal = durable_journal(folder, wall_clock=FakeClock(WRITTEN_AT), make_random=lambda: "ab" * 8, signer=signer)
    with patch.object(log, "FILE_LIMIT", 1500), patch.object(log, "TIDY_ABOVE", 1500):
        await journal.open()
        await add(journal, PutWrites("retired", "", "1", (("x", Serialized("bytes", b"x" * 1500)),), "task"))
        done = [await add(journal, DeleteThread("done")), await add(journal, FIRST, None)]
        await journal.mark_applied(done[:1])
        await journal.mark_applied(journal.entries("retired"))
        await add(journal, WRITES, "1f000000-0000-6000-8000-000000000001")
        await add(journal, "refused")
        await add(journal, "refused")
        await add(journal, "diverted", None)
        await journal.dead_letter(journal.entries("refused")[0], "invalid byte sequence: ü")
        await journal.redirect("diverted", "diverted~outage~1")
        await journal.check()
        await add(journal, DeleteThread("thread ü"), UNKNOWN)
    killed = journal._logs.own
    assert killed is not None
    await journal._logs.run(killed.release)
    remove_spare(folder)


def remove_spare(folder: Path) -> None:
    """It is nothing but zeros."""
    for spare in folder.glob("*.spare"):
        spare.unlink()


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1]), SIGNER if "signed" in sys.argv[2:] else None))
