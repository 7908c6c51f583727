"""What the status page says of a report, and that it shows what it was given and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from enhanced_checkpointing.observability import health
from enhanced_checkpointing.observability.events import (
    Diverged,
    Gauges,
    Notice,
    OperationScope,
    OutageEnded,
    OutageStarted,
    PrimaryRecovered,
    SystemState,
)
from enhanced_checkpointing.observability.recent import PastOutage, Recent, Sample
from enhanced_checkpointing.web.page import CONTENT_SECURITY_POLICY, page, sections, update
from enhanced_checkpointing.web.view import Mode, View, look, mode_of, moment, outage_end, size, span

NOW = 1_800_000_000.0
PRIMARY = health.PrimaryHealth(
    backend="postgres",
    healthy=True,
    breaker_open=False,
    outage_seconds=None,
    error=None,
    outstanding_attempts=0,
    pool={"size": 2, "max": 10},
    notes={},
)
DOWN = replace(PRIMARY, healthy=False, breaker_open=True, outage_seconds=90.0, error="connection refused")
JOURNAL = health.JournalHealth(
    mode="durable",
    durable=True,
    accepts=True,
    pending=0,
    oldest_age=0.0,
    size=0,
    capacity=1000,
    dead_letters=0,
    frozen_threads=(),
)
LETTER = {"thread_id": "thread-7", "operation": "put", "journaled_at": NOW - 60.0, "error": "violates a rule"}


def report(
    primary: health.PrimaryHealth = PRIMARY,
    journal: health.JournalHealth = JOURNAL,
    divergences: int = 0,
    **parts: dict[str, Any],
) -> dict[str, Any]:
    standby = health.StandbyHealth(threads=3, size=2048)
    return health.report(primary=primary, journal=journal, standby=standby, divergences=divergences, parts=parts)


CLOSED = health.report_closed({}, enabled=True)
FROZEN = replace(JOURNAL, pending=2, dead_letters=1, frozen_threads=("thread-7",))


def view(
    told: dict[str, Any] | None = None,
    recent: Recent | None = None,
    letters: list[dict[str, Any]] | None = None,
    *,
    enabled: bool = True,
) -> View:
    recent = recent or Recent(lambda: NOW)
    return look(recent, told or report(), letters or [], name="shop-agent", enabled=enabled, now=NOW)


@pytest.mark.parametrize(
    ("told", "mode"),
    [
        (report(), Mode.HEALTHY),
        (report(DOWN), Mode.OUTAGE),
        (report(DOWN, replace(JOURNAL, pending=9)), Mode.OUTAGE),
        (report(DOWN, replace(JOURNAL, accepts=False)), Mode.REFUSING),
        (report(journal=replace(JOURNAL, pending=9)), Mode.DRAINING),
        (report(journal=FROZEN), Mode.ATTENTION),
        (report(replace(PRIMARY, healthy=False, error="wrong password")), Mode.ATTENTION),
        (report(store={"healthy": False, "error": "no answer"}), Mode.ATTENTION),
        (report(journal=replace(JOURNAL, error="No space left on device")), Mode.ATTENTION),
        (CLOSED, Mode.CLOSED),
    ],
)
def test_every_report_has_its_word(told: dict[str, Any], mode: Mode) -> None:
    assert mode_of(told, enabled=True) is mode


def test_report_of_what_is_switched_off_is_no_alarm() -> None:
    told = health.report_closed({}, enabled=False)
    assert mode_of(told, enabled=False) is Mode.OFF
    assert view(told, enabled=False).points == ()


@pytest.mark.parametrize(
    ("told", "letters", "what", "remedy"),
    [
        (report(DOWN), [], "connection refused", "Do not restart this process"),
        (report(replace(PRIMARY, healthy=False, error="wrong password")), [], "wrong password", "Mend what"),
        (report(journal=replace(JOURNAL, error="No space left")), [], "No space left", "free space"),
        (report(DOWN, replace(JOURNAL, size=510)), [], "51% full", "CHECKPOINT_JOURNAL_MAX_BYTES"),
        (report(journal=FROZEN), [LETTER], "1 operation was refused", "the next start of this process"),
        (report(journal=replace(JOURNAL, damages=2)), [], "damaged in 2 places", "quarantine"),
        (report(journal=replace(JOURNAL, foreign=(("db-9/x", 1),))), [], "db-9/x", "CHECKPOINT_JOURNAL_ADOPT=all"),
        (report(divergences=2), [], "2 threads were written by another process", "Both branches are kept"),
        (report(store={"healthy": False, "error": "no answer"}), [], "store is not healthy: no answer", "Look at it"),
    ],
)
def test_what_needs_a_person_is_said_with_what_to_do(
    told: dict[str, Any], letters: list[dict[str, Any]], what: str, remedy: str
) -> None:
    shown = view(told, letters=letters)
    (point,) = [point for point in shown.points if what in point.what]
    assert remedy in point.remedy
    assert what in unescape(page(shown))


def test_healthy_page_asks_for_nothing() -> None:
    assert view().points == ()
    assert "What to do" not in page(view())


def test_draining_is_not_told_as_a_failure() -> None:
    still_explained = replace(PRIMARY, error="why the breaker had opened")
    assert view(report(still_explained, replace(JOURNAL, pending=9))).points == ()


def test_outage_in_memory_is_told_to_be_lost_with_the_process() -> None:
    in_memory = replace(JOURNAL, mode="memory", durable=False)
    assert "lost if this process ends" in view(report(DOWN, in_memory)).headline.meaning
    assert "lost" not in view(report(DOWN)).headline.meaning


@pytest.mark.parametrize("known", [True, False], ids=["heard of", "begun before"])
def test_outage_that_goes_on_is_the_first_of_the_list(known: bool) -> None:
    recent = Recent(lambda: NOW)
    if known:
        recent.emit(OutageStarted("postgres", "connection refused", NOW - 90.0))
    shown = view(report(DOWN, replace(JOURNAL, pending=9)), recent)
    assert shown.outage_goes_on
    (outage,) = shown.outages
    assert outage.started_at == pytest.approx(NOW - 90.0)
    assert outage_end(outage, shown) == NOW
    told = sections(shown)["outages"]
    assert "1 min 30 s, goes on" in told
    assert "9 wait" in told
    assert "connection refused" in told


def test_outage_whose_end_nobody_saw_does_not_go_on() -> None:
    recent = Recent(lambda: NOW)
    recent.emit(OutageStarted("postgres", "connection refused", NOW - 90.0))
    shown = view(report(), recent)
    assert not shown.outage_goes_on
    assert "end not seen" in sections(shown)["outages"]


def test_past_outage_is_told_with_its_counts() -> None:
    recent = Recent(lambda: NOW)
    recent.emit(OutageStarted("postgres", "connection refused", NOW - 600.0))
    recent.emit(PrimaryRecovered("postgres", 42.0, 1_234))
    recent.emit(
        OutageEnded("postgres", NOW - 600.0, 45.0, journaled=1_234, drained=1_233, dead_letters=1, divergences=0)
    )
    told = sections(view(recent=recent))["outages"]
    for words in ("45.0 s", "after 42.0 s", "1,234", "1,233", "connection refused"):
        assert words in told


EVIL = "<script>alert('x')</script>\"&"


def test_whatever_others_named_is_shown_as_text() -> None:
    recent = Recent(lambda: NOW)
    recent.emit(OutageStarted("postgres", EVIL, NOW - 90.0))
    recent.emit(Notice("ERROR", EVIL))
    recent.emit(Diverged("postgres", EVIL, "", "a", "b", EVIL))
    with recent.operation(OperationScope(EVIL, "postgres", EVIL, outcome=EVIL)):
        pass
    evil = {**LETTER, "thread_id": EVIL, "operation": EVIL, "error": EVIL}
    told = report(replace(DOWN, error=EVIL, backend=EVIL), FROZEN, 1, **{EVIL: {"healthy": False, "error": EVIL}})
    shown = replace(view(told, recent, [evil]), name=EVIL)
    html = page(shown)
    assert html.count("<script>") == 1, "ours"
    assert "alert(" in html
    assert "alert('" not in html
    assert EVIL not in str(update(shown)["sections"])


@pytest.mark.parametrize("told", [report(), report(DOWN, FROZEN, 2), CLOSED])
def test_page_needs_nothing_from_elsewhere(told: dict[str, Any]) -> None:
    html = page(view(told, letters=[LETTER]))
    assert re.findall(r"https?://|url\(|@import|src=", html) == []
    links = re.findall(r'href="([^"]*)"', html)
    assert [link for link in links if not link.startswith("data:")] == ["health", "metrics", "readyz", "livez"]
    assert "http-equiv" in html, "without its script it is loaded anew"
    assert " style=" not in html, "the policy would forbid it"
    assert "'unsafe" not in CONTENT_SECURITY_POLICY


def test_update_holds_every_part_of_the_page() -> None:
    shown = view(report(DOWN, FROZEN, 2), letters=[LETTER])
    html = page(shown)
    for name, part in update(shown)["sections"].items():
        assert f'id="{name}"' in html
        assert part in html


def test_long_lists_are_cut_and_say_so() -> None:
    letters = [{**LETTER, "thread_id": f"thread-{number}"} for number in range(30)]
    told = sections(view(report(journal=FROZEN), letters=letters))["refused"]
    assert told.count("<tr>") == 21
    assert "the first 20 of 30" in told


def test_picture_of_the_journal_reaches_as_far_back_as_needed_and_ends_now() -> None:
    def drawn(*samples: Sample) -> str:
        now = Sample(NOW, SystemState.OUTAGE, 40)
        return sections(replace(view(report(DOWN)), samples=(*samples, now)))["depth"]

    short = drawn(Sample(NOW - 30.0, SystemState.HEALTHY, 0), Sample(NOW - 15.0, SystemState.OUTAGE, 20))
    assert "at most 40 in the last 60 seconds" in short
    assert 'class="line" d="M500.0 139.0H750.0V75.0H1000.0V11.0' in short
    assert '<rect class="outage" x="750.0" width="250.0"' in short
    long = drawn(Sample(NOW - 9_999.0, SystemState.OUTAGE, 80), Sample(NOW - 900.0, SystemState.DRAINING, 10))
    assert "at most 80 in the last 30 minutes" in long
    assert 'd="M0.0 11.0H500.0V' in long


def test_quiet_journal_needs_no_picture() -> None:
    recent = Recent(lambda: NOW)
    recent.observe(Gauges)
    assert sections(view(recent=recent))["depth"] == sections(view(CLOSED))["depth"] == ""


def test_short_outage_is_seen_on_a_long_strip() -> None:
    outages = (
        PastOutage(NOW - 1.0, "x", down=0.5, seconds=0.9),
        PastOutage(NOW - 50_000.0, "x", down=1.0, seconds=40_000.0),
    )
    told = sections(replace(view(), since=NOW - 90_000.0, outages=outages))["outages"]
    assert "2 in the last 24 hours" in told
    assert '<rect class="outage" x="421.3" width="4.0"' in told
    assert '<rect class="draining" x="425.3" width="459.0"' in told
    assert '<rect class="outage" x="996.0" width="4.0"' in told, "at the edge, not beyond it"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.0004, "0.4 ms"), (0.0123, "12 ms"), (0.9996, "1.0 s"), (59.94, "59.9 s"), (59.96, "1 min")),
        *((61.0, "1 min 1 s"), (3_599.7, "1 h"), (3_660.0, "1 h 1 min"), (90_000.0, "1 d 1 h")),
    ],
)
def test_span_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (268_435_456, "256 MiB"), (2**50, "1,024.0 TiB")],
)
def test_size_is_told_in_a_fitting_unit(count: int, words: str) -> None:
    assert size(count) == words


def test_moment_has_a_date_only_on_another_day() -> None:
    assert moment(NOW, NOW + 60.0) == "08:00:00"
    assert moment(NOW - 86_400.0, NOW) == "14 Jan 08:00:00"


def test_page_and_report_stay_small_whatever_threads_errors_and_databases_are_called() -> None:
    long = "<é" * 2048
    threads = tuple(f"{long}{number}" for number in range(10_000))
    letters = [LETTER | {"thread_id": thread, "error": long * 4} for thread in threads]
    recent = Recent(lambda: NOW)
    for number in range(1_000):
        recent.emit(Diverged("postgres", f"{long}{number}", "", None, None, f"{long}-{number}"))
        recent.emit(Notice("ERROR", f"{number} {long * 10}"))
        recent.emit(OutageStarted("postgres", f"{number} {long}", NOW))
        recent.emit(OutageEnded("postgres", NOW, 1.0, 1, 1, 0, 0))
    journal = replace(
        FROZEN,
        pending=10_000,
        dead_letters=10_000,
        error=long,
        frozen_threads=threads,
        foreign=tuple((f"{long}{number}", 1) for number in range(5_000)),
    )
    told = report(replace(DOWN, error=long), journal)
    shown = view(told, recent, letters)
    assert len(json.dumps(told).encode()) < 100_000
    assert len(json.dumps(update(shown)).encode()) < 512_000
    assert len(page(shown).encode()) < 512_000
    assert "the first 20 of 10,000" in page(shown)
    assert told["journal"]["foreign"][-1] == {"home": "and 4980 others", "books": 4980}
