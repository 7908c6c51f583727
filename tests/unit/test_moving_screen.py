"""What is shown while threads are moved, and what came of it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from enhanced_checkpointing.cli import moving
from enhanced_checkpointing.cli.moving import as_object, following, show_outcomes, show_problems
from enhanced_checkpointing.threads.contents import Count
from enhanced_checkpointing.threads.migrate import PROBLEMS_KEPT, Outcome, Report, Tally


def tally(*reports: Report) -> Tally:
    found = Tally(seconds=2.0)
    for report in reports:
        found.add(report)
    return found


def printed(found: Tally, *, rehearsed: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80)
    show_outcomes(console, found, rehearsed=rehearsed)
    show_problems(console, found)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


GOOD = Report("a", Outcome.COPIED, Count(2, 3), size=2048)
BAD = Report("[b]\x1b", Outcome.REFUSED, Count(1, 1), reasons=("it has gone on", "it keeps what it has"))


def test_lines_tell_how_far_it_is_how_fast_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(moving, "LINE_EVERY", 0.0)
    with following("moved", 4, quiet=False) as tell:
        tell(GOOD)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("moved 1 of 4 threads, ")
    assert " threads/s, " in shown.err
    assert shown.err.rstrip().endswith(" left")
    with following("imported", None, quiet=False) as tell:
        tell(GOOD)
    assert "left" not in capsys.readouterr().err


def test_rehearsal_says_what_would_be_done() -> None:
    found = tally(GOOD, Report("b", Outcome.EQUAL), Report("c", Outcome.REPLACED))
    shown = printed(found, rehearsed=True)
    assert "1 would be copied, 1 equal already, 1 would be replaced" in shown
    assert "2.0 KiB to write, " in shown
    assert "would" not in printed(found)


def test_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with following("moved", 1000, quiet=False) as tell:
        for _ in range(1000):
            tell(GOOD)
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(moving, "LINE_EVERY", 0.0)
    with following("moved", 4, quiet=True) as tell:
        tell(GOOD)
    assert capsys.readouterr().err == ""


def test_terminal_has_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        moving, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    )
    with following("moved", 4, quiet=False) as tell:
        for _ in range(3):
            tell(GOOD)
    assert "moved" in screen.getvalue()
    assert "3/4" in screen.getvalue()
    assert "left" in screen.getvalue()


def test_end_names_what_is_not_as_it_should_be_and_why() -> None:
    said = printed(tally(GOOD, GOOD, BAD))
    assert "3 threads: 2 copied, 1 refused" in said
    assert "4 checkpoints and 6 writes, 4.0 KiB written, in 2.0 s: 2 threads/s" in said
    assert "refused   '[b]\\x1b'" in said
    assert "          it keeps what it has" in said


def test_end_is_short_however_much_is_wrong_and_json_names_more() -> None:
    found = tally(*[BAD] * (PROBLEMS_KEPT + 5))
    said = printed(found)
    assert len(said.splitlines()) < 80
    assert "and 985 more; --json names 1,000" in said
    shown = json.loads(json.dumps(as_object(found, source="here", target="there")))
    assert shown["status"] == "incomplete"
    assert shown["outcomes"]["refused"] == PROBLEMS_KEPT + 5
    assert len(shown["problems"]) == PROBLEMS_KEPT
    assert shown["problems"][0] == {"thread_id": BAD.thread_id, "outcome": "refused", "reasons": list(BAD.reasons)}


def test_nothing_at_all_is_complete() -> None:
    assert printed(Tally()).startswith("0 threads\n")
    assert as_object(Tally(), source="here", target="there")["status"] == "complete"
