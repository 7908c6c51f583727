"""The audit trail: every entry follows from the one before it, and whatever is changed or missing is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_checkpointing.audit import HEAD, LOG, NAMED, TAIL, AuditTrail, named
from enhanced_checkpointing.identifiers import LONGEST_ID
from enhanced_checkpointing.journal.recovery import strays_in

Change = Callable[[list[bytes]], list[bytes]]


def filled(directory: Path, count: int = 5) -> AuditTrail:
    trail = AuditTrail(directory / "journal", "sqlite:a file", wall_clock=lambda: 1.0)
    for number in range(count):
        trail.note("delete", threads=[f"thread-{number}", "thread\ud83d\ude00"])
    return trail


def test_trail_is_private_whole_and_no_stray_file_of_the_journal(tmp_path: Path) -> None:
    trail = filled(tmp_path)
    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == [HEAD, LOG]
    assert strays_in(names) == []
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "journal").iterdir()} == {0o600}
    found = trail.verify()
    assert (found.entries, found.fault) == (5, None)
    assert [entry["number"] for entry in trail.entries()] == [1, 2, 3, 4, 5]
    assert trail.verify(found.newest).fault is None


def test_entries_of_many_writers_form_one_chain(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for number in range(40):
            pool.submit(AuditTrail(tmp_path).note, "delete", threads=[str(number)])
    trail = AuditTrail(tmp_path)
    assert (trail.verify().entries, trail.verify().fault) == (40, None)
    assert {entry["thread_ids"][0] for entry in trail.entries()} == {str(number) for number in range(40)}


def test_entry_names_a_bounded_number_of_threads_and_counts_all(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    trail.note("retention delete", threads=[str(number) for number in range(NAMED + 5)])
    (entry,) = trail.entries()
    assert (entry["threads"], len(entry["thread_ids"])) == (NAMED + 5, NAMED)


def test_entry_of_many_long_ids_breaks_no_chain(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    trail.note("prune", threads=["é" * (LONGEST_ID // 2)] * NAMED, runs=named(["é" * (LONGEST_ID // 2)] * NAMED))
    trail.note("delete", threads=["after"])
    assert (trail.verify().entries, trail.verify().fault) == (2, None)
    assert [entry["threads"] for entry in trail.entries()] == [NAMED, 1]


CHANGES: dict[str, tuple[Change, int]] = {
    "changed": (lambda lines: [lines[0], lines[1].replace(b"thread-1", b"thread-9"), *lines[2:]], 2),
    "left out": (lambda lines: [*lines[:2], *lines[3:]], 3),
    "exchanged": (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
    "written twice": (lambda lines: [lines[0], *lines], 2),
    "no entry": (lambda lines: [*lines[:3], b"[" * 100_000 + b"\n", *lines[3:]], 4),
    "cut at its end": (lambda lines: lines[:-1], 5),
    "cut in a line": (lambda lines: [*lines[:-1], lines[-1][:-9]], 5),
    "key written twice": (
        lambda lines: [lines[0], lines[1].replace(b'{"number"', b'{"action": "kept", "number"'), *lines[2:]],
        2,
    ),
    "other spaces": (lambda lines: [lines[0].replace(b": ", b":", 1), *lines[1:]], 1),
    "a number above all": (lambda lines: [*lines, b'{"number":1e999,"hash":"x"}\n'], 6),
    "a list": (lambda lines: [*lines, b"[]\n"], 6),
    "taken away": (lambda lines: [], 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_log_that_was_changed_is_told_by_its_first_broken_line(name: str, tmp_path: Path) -> None:
    trail = filled(tmp_path)
    log = tmp_path / "journal" / LOG
    change, line = CHANGES[name]
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    found = trail.verify()
    assert found.line == line, found
    assert found.fault is not None


def test_log_that_was_made_anew_with_its_head_is_told_by_a_hash_that_was_kept(tmp_path: Path) -> None:
    kept = filled(tmp_path).verify().newest
    for path in (tmp_path / "journal").iterdir():
        path.unlink()
    trail = AuditTrail(tmp_path / "journal")
    trail.note("delete", threads=["another"])
    assert trail.verify().fault is None
    assert "was given" in str(trail.verify(kept).fault)


@pytest.mark.parametrize(
    "head",
    [b"", b"{}", b"[1]", b"\xff", b"[" * 1024]
    + [b'{"number": %s, "hash": "x"}' % number for number in (b"0", b"-1", b"1e999", b"Infinity", b"2.0", b"true")],
)
def test_missing_or_damaged_head_is_told(head: bytes, tmp_path: Path) -> None:
    trail = filled(tmp_path)
    (tmp_path / "journal" / HEAD).write_bytes(head)
    assert HEAD in str(trail.verify().fault)
    (tmp_path / "journal" / HEAD).unlink()
    assert HEAD in str(trail.verify().fault)


PLANTED = [
    b'{"number":1e999,"hash":"x"}',
    b'{"number":-Infinity,"hash":"x"}',
    b'{"number":' + b"9" * 5000 + b',"hash":"x"}',
    b"[" * 100_000,
    b'{"number":[],"hash":"x"}',
    b"null",
    b"\xff",
    b"",
]


@pytest.mark.parametrize("line", PLANTED, ids=range(len(PLANTED)))
def test_planted_line_keeps_nothing_from_being_noted_shown_or_found(line: bytes, tmp_path: Path) -> None:
    trail = filled(tmp_path)
    with (tmp_path / "journal" / LOG).open("ab") as log:
        log.write(line + b"\n")
    trail.check()
    trail.note("delete", threads=["after"])
    assert [entry["thread_ids"][0] for entry in trail.entries()][-2:] == ["thread-4", "after"]
    assert trail.verify().line == 6


def test_head_of_an_older_entry_does_not_vouch_for_another(tmp_path: Path) -> None:
    trail = filled(tmp_path)
    head, hashes = tmp_path / "journal" / HEAD, [entry["hash"] for entry in trail.entries()]
    head.write_text(json.dumps({"number": 4, "hash": hashes[3]}), encoding="utf-8")
    assert trail.verify().fault is None, "a process died between the two files"
    head.write_text(json.dumps({"number": 4, "hash": hashes[4]}), encoding="utf-8")
    assert trail.verify().fault is not None


def test_last_line_that_is_longer_than_any_entry_is_told_and_not_cut(tmp_path: Path) -> None:
    trail = filled(tmp_path)
    with (tmp_path / "journal" / LOG).open("ab") as log:
        log.write(b"x" * (TAIL + 9))
    size = (tmp_path / "journal" / LOG).stat().st_size
    for way in (trail.check, partial(trail.note, "delete")):
        with pytest.raises(OSError, match="cut it away"):
            way()
    assert (tmp_path / "journal" / LOG).stat().st_size == size


@given(
    data=st.binary(max_size=60)
    | st.recursive(st.none() | st.floats(), st.lists).map(lambda one: json.dumps(one).encode())
)
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_both_files_ends_in_a_verdict(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("trail")
    trail = filled(directory, 2)
    for name in (LOG, HEAD):
        with (directory / "journal" / name).open("ab" if name == LOG else "wb") as file:
            file.write(data)
    assert trail.verify().fault is not None
    trail.note("delete", threads=["after"])
    assert [*trail.entries()][-1]["thread_ids"] == ["after"]


def test_what_a_writer_that_died_left_of_a_line_is_cut_away_by_the_next(tmp_path: Path) -> None:
    trail = filled(tmp_path)
    with (tmp_path / "journal" / LOG).open("ab") as log:
        log.write(b'{"number": 6, "at')
    assert trail.verify().line == 6
    trail.note("delete", threads=["next"])
    assert (trail.verify().entries, trail.verify().fault) == (6, None)


@given(at=st.integers(min_value=0), flipped=st.integers(min_value=1, max_value=255))
@settings(max_examples=40, deadline=None)
def test_any_flipped_byte_is_found(at: int, flipped: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    trail = filled(tmp_path_factory.mktemp("trail"), 2)
    log = next(trail._directory.glob(LOG))
    data = bytearray(log.read_bytes())
    at %= len(data)
    data[at] ^= flipped
    log.write_bytes(data)
    assert trail.verify().fault is not None
