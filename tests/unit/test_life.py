"""The two ends of a manager's life."""

from __future__ import annotations

import pytest

from enhanced_checkpointing import CheckpointerConfig
from enhanced_checkpointing.journal.memory_journal import MemoryJournal
from enhanced_checkpointing.operations import DeleteThread
from enhanced_checkpointing.resilience.deadline import Deadline
from enhanced_checkpointing.telemetry.events import Notice
from enhanced_checkpointing.testing import FakeClock
from enhanced_checkpointing.upkeep.life import journal_warnings, tell_backlog
from tests.support.recorder import Recorder

JOURNAL = MemoryJournal(10_000)


def test_production_warns_of_a_journal_in_memory_that_nobody_chose() -> None:
    (warning,) = journal_warnings(CheckpointerConfig(environment="production"), JOURNAL)
    assert warning.level == "WARNING"
    assert "lost if this process ends" in warning.message
    assert "CHECKPOINT_JOURNAL=memory accepts that" in warning.message


def test_journal_in_memory_that_was_chosen_by_name_is_not_warned_of() -> None:
    config = CheckpointerConfig(environment="production", journal="memory")
    assert journal_warnings(config, JOURNAL) == []
    assert journal_warnings(CheckpointerConfig(environment="development"), JOURNAL) == []
    assert journal_warnings(CheckpointerConfig(environment="production"), None) == []


@pytest.mark.parametrize("journal", [JOURNAL, None], ids=["memory", "off"])
def test_journal_directory_that_was_set_is_said_to_have_no_effect(journal: MemoryJournal | None) -> None:
    default = CheckpointerConfig().journal_dir
    (warning,) = journal_warnings(CheckpointerConfig(journal_dir=default), journal)  # set, although to the default
    assert warning.level == "WARNING"
    assert "CHECKPOINT_JOURNAL_DIR has no effect" in warning.message


def test_both_warnings_of_the_journal_are_given() -> None:
    config = CheckpointerConfig(environment="production", journal_dir="/var/lib/journal")
    assert len(journal_warnings(config, JOURNAL)) == 2


async def test_backlog_of_a_memory_journal_is_told_as_lost() -> None:
    recorder = Recorder()
    journal = MemoryJournal(10_000)
    tell_backlog(journal, recorder)
    assert recorder.events == []
    await journal.append(DeleteThread("thread"), None, Deadline(FakeClock(), 1.0))
    tell_backlog(journal, recorder)
    assert recorder.events == [
        Notice(
            "ERROR",
            "Stopped with 1 acknowledged operations not in the primary. The journal is in memory, so they are lost.",
        )
    ]
