"""The audit trail of real deletions, by methods, retention and commands; and what it says when it is not whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enhanced_checkpointing.audit import LOG, AuditTrail
from enhanced_checkpointing.threads.retention import RetentionPolicy
from tests.support.checkpointer import eventually, opened, saver_of, sqlite, switched
from tests.support.retention import let_pass
from tests.support.terminal import command
from tests.support.two_processes import off, one_node


async def talked(saver: Any, *thread_ids: str) -> None:
    graph = one_node("say", lambda _: {"log": ["said"]}).compile(checkpointer=saver)
    for thread_id in thread_ids:
        await graph.ainvoke({"log": ["word"]}, {"configurable": {"thread_id": thread_id}})


def test_what_methods_and_commands_delete_import_and_export_is_in_one_trail_that_is_whole(tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"

    async def delete() -> None:
        async with opened(sqlite(file, journal_dir=journal)) as manager:
            await talked(saver_of(manager), "by a method", "by prune", "by retention", "by a command", "stays")
            await manager.delete_thread("by a method")
            await manager.prune(["by prune"])
            await manager.mark_completed("by retention")
            let_pass(manager, 2)
            policy = RetentionPolicy(active_days=9, completed_days=1)
            await manager.run_retention(policy, dry_run=True)
            await manager.run_retention(policy)

    asyncio.run(delete())
    variables = {"CHECKPOINT_JOURNAL_DIR": str(journal)}
    assert command("threads", "delete", "by a command", "--yes", "--sqlite", file, **variables).code == 0
    assert command("export", file, tmp_path / "made" / "out.jsonl", **variables).code == 0
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert command("import", tmp_path / "made" / "out.jsonl", tmp_path / "new.sqlite", **variables).code in (0, 2)

    shown = command("audit", "show", "--json", **variables).report["entries"]
    assert [(entry["action"], entry["thread_ids"]) for entry in reversed(shown)][:6] == [
        ("delete", ["by a method"]),
        ("prune keep_latest", ["by prune"]),
        ("retention delete", ["by retention"]),
        ("delete", ["by a command"]),
        ("export begins", []),
        ("export", ["by prune", "stays"]),
    ]
    assert [(entry["action"], entry["threads"], sorted(entry["thread_ids"])) for entry in shown[:2]] == [
        ("import", 2, ["by prune", "stays"]),
        ("export", 2, ["by prune", "stays"]),
    ]
    assert shown[0]["outcomes"] == {"copied": 2}
    assert {entry["database"] for entry in shown[-3:]} == {shown[-1]["database"]}
    one = command("audit", "show", "--json", "--thread", "by prune", **variables).report["entries"]
    assert [entry["action"] for entry in one] == ["import", "export", "prune keep_latest"]
    page = command("audit", "show", "--json", "--limit", 2, **variables).report
    rest = command("audit", "show", "--json", "--before", page["before"], **variables).report
    assert page["entries"] + rest["entries"] == shown
    assert "by a method" in command("audit", "show", **variables).words

    assert command("audit", "verify", **variables).code == 0
    none = command("audit", "verify", CHECKPOINT_JOURNAL_DIR=str(tmp_path / "none"))
    assert (none.code, "no entry" in none.words) == (0, True)
    log = journal / LOG
    log.write_bytes(log.read_bytes().replace(b"by a method", b"by a madman"))
    broken = command("audit", "verify", "--json", **variables)
    assert (broken.code, broken.report["line"]) == (1, 1)
    assert "Line 1" in command("audit", "verify", **variables).words


def test_what_the_saver_deletes_and_commands_prune_migrate_and_drain_is_in_the_trail(tmp_path: Path) -> None:
    file, journal, target = tmp_path / "agents.sqlite", tmp_path / "journal", tmp_path / "target.sqlite"

    async def work() -> None:
        async with switched("sqlite", "", file, journal_dir=journal) as primary:
            saver = saver_of(primary.manager)
            await talked(saver, "deleted", "7", "pruned", "deleted later", "written later")
            await saver.adelete_thread("deleted")
            await primary.manager.prune([7])  # type: ignore[list-item]  # as people write it
            await saver.adelete_for_runs(["a run"])
            await off(primary)
            await saver.adelete_thread("deleted later")
            await talked(saver, "written later")
            await primary.manager.cleanup()

    asyncio.run(work())
    where: dict[str, Any] = {"CHECKPOINT_JOURNAL_DIR": str(journal)}
    assert command("journal", "drain", "--sqlite", file, **where).code == 0
    assert command("threads", "prune", "pruned", "--keep", 1, "--yes", "--sqlite", file, **where).code == 0
    assert command("migrate", file, target, **where).code == 0
    assert command("migrate", file, target, "--dry-run", **where).code == 0
    entries = [*AuditTrail(journal).entries()]
    assert [(entry["action"], sorted(entry["thread_ids"])) for entry in entries] == [
        ("delete", ["deleted"]),
        ("prune keep_latest", ["7"]),
        ("delete for runs", []),
        ("delete", ["deleted later"]),
        ("journal drain", ["deleted later", "written later"]),
        ("prune", ["pruned"]),
        ("migrate", ["7", "pruned", "written later"]),
    ]
    assert (entries[6]["threads"], entries[6]["outcomes"]) == (3, {"copied": 3})
    assert entries[2]["runs"] == ["a run"]
    assert entries[4]["deleted"] == ["deleted later"]
    assert entries[4]["operations"] > 2
    assert (entries[6]["source"], entries[6]["migrated"]) == (entries[0]["database"], 3)
    assert str(target) in entries[6]["database"]


async def test_trail_that_cannot_be_written_degrades_health_and_is_found_by_doctor(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with opened(sqlite(tmp_path / "agents.sqlite", journal_dir=journal)) as manager:
        assert (await manager.health_check())["audit"] == {"healthy": True, "error": None}
        (journal / LOG).symlink_to(tmp_path / "elsewhere")
        await eventually(lambda: manager.health_status["overall_status"] == "degraded")
        assert "it is a link" in manager.health_status["audit"]["error"]
        named: dict[str, Any] = {"CHECKPOINT_JOURNAL_DIR": str(journal)}
        found = await asyncio.to_thread(command, "doctor", "--json", "--sqlite", tmp_path / "agents.sqlite", **named)
        assert [one["status"] for one in found.report["findings"] if one["name"] == "journal.audit"] == ["warning"]
        (journal / LOG).unlink()
        await eventually(lambda: manager.health_status["overall_status"] == "healthy")


async def test_deletion_is_done_and_told_where_the_trail_cannot_be_written(tmp_path: Path, caplog: Any) -> None:
    async with opened(sqlite(tmp_path / "agents.sqlite", journal_dir=tmp_path / "journal")) as manager:
        await talked(saver_of(manager), "gone")
        (tmp_path / "journal" / LOG).symlink_to(tmp_path / "elsewhere")
        assert await manager.delete_thread("gone")
        assert await manager.get_thread("gone") is None
    assert "is not in the audit trail" in caplog.text
    assert not (tmp_path / "elsewhere").exists()
    assert AuditTrail(tmp_path / "other").verify().entries == 0


@pytest.mark.parametrize("failure", [OverflowError("content"), RecursionError(), OSError(28, "full")])
async def test_whatever_keeps_a_deletion_from_being_noted_raises_nothing_and_degrades_health(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    async with opened(sqlite(tmp_path / "agents.sqlite", journal_dir=tmp_path / "journal")) as manager:
        await talked(saver_of(manager), "gone", "kept")
        monkeypatch.setattr(AuditTrail, "note", fail)
        monkeypatch.setattr(AuditTrail, "check", fail)
        assert await manager.delete_thread("gone")
        await manager.prune(["kept"])
        assert manager.health_status["overall_status"] == "degraded"
        assert not manager.health_status["audit"]["healthy"]
    assert "is not in the audit trail" in caplog.text


async def test_planted_line_keeps_no_deletion_from_being_noted(tmp_path: Path) -> None:
    async with opened(sqlite(tmp_path / "agents.sqlite", journal_dir=tmp_path / "journal")) as manager:
        await talked(saver_of(manager), "one", "two")
        assert await manager.delete_thread("one")
        with (tmp_path / "journal" / LOG).open("a", encoding="utf-8") as log:
            log.write('{"number":1e999,"hash":"x"}\n')
        assert await manager.delete_thread("two")
    trail = AuditTrail(tmp_path / "journal")
    assert [entry["thread_ids"] for entry in trail.entries()] == [["one"], ["two"]]
    assert trail.verify().line == 2


def test_export_into_a_place_that_cannot_be_made_is_refused_before_it_is_noted(tmp_path: Path) -> None:
    file, journal = tmp_path / "agents.sqlite", tmp_path / "journal"

    async def fill() -> None:
        async with opened(sqlite(file, journal_dir=journal)) as manager:
            await talked(saver_of(manager), "one")

    asyncio.run(fill())
    (tmp_path / "no folder").touch()
    refused = command("export", file, tmp_path / "no folder" / "out.jsonl", CHECKPOINT_JOURNAL_DIR=str(journal))
    assert refused.code != 0
    assert ".part" not in refused.err
    assert [*AuditTrail(journal).entries()] == []
