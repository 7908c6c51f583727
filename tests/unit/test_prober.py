"""When the next probe comes, and what a probe does to the breaker."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_checkpointing.backends.base import classify_by_type
from enhanced_checkpointing.backends.memory.backend import MemoryBackend
from enhanced_checkpointing.config import create_memory_checkpointer
from enhanced_checkpointing.observability.events import ConfigurationFault, ProbeFinished
from enhanced_checkpointing.recovery.prober import UNREACHED_PAUSE, Finding, Prober, next_pause
from enhanced_checkpointing.resilience.breaker import Breaker, BreakerSettings
from enhanced_checkpointing.resilience.deadline import TICK
from enhanced_checkpointing.resilience.failures import CallFailed, Failure, FailureKind
from enhanced_checkpointing.resilience.guard import Guard
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.testing import FlakySaver
from tests.support.recorder import Recorder
from tests.support.virtual_time import now

pytestmark = pytest.mark.virtual_time


seconds = st.floats(0.01, 60.0)


@given(st.sampled_from(Finding), seconds, st.booleans(), seconds, seconds, seconds)
def test_every_pause_lies_between_the_bounds(
    finding: Finding, last: float, outage: bool, interval: float, one: float, other: float
) -> None:
    shortest, longest = sorted((one, other))
    pause = next_pause(finding, last, outage=outage, interval=interval, shortest=shortest, longest=longest)
    if finding is Finding.HEALTHY:
        assert pause == interval
    else:
        assert shortest <= pause <= longest
        assert pause <= max(2 * last, shortest), "it at most doubles"
        if finding is Finding.UNREACHED:
            assert pause <= max(shortest, UNREACHED_PAUSE)
        if finding is Finding.SILENT or not outage:
            assert pause == shortest


def pauses(finding: Finding, *, count: int = 7) -> list[float]:
    found, pause = [], 0.5
    for _ in range(count):
        pause = next_pause(finding, pause, outage=True, interval=5.0, shortest=0.5, longest=15.0)
        found.append(pause)
    return found


def test_refusing_server_is_spared_by_growing_pauses() -> None:
    assert pauses(Finding.REFUSING) == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_server_that_is_not_there_is_looked_for_every_second() -> None:
    assert pauses(Finding.UNREACHED, count=3) == [1.0, 1.0, 1.0]


def test_silent_server_is_asked_again_soon_as_the_probe_itself_has_waited() -> None:
    assert pauses(Finding.SILENT, count=3) == [0.5, 0.5, 0.5]


class FaultyBackend(MemoryBackend):
    """Memory whose faults are classified as a test says, and whose setup counts."""

    setups = 0
    renewed = 0
    means: Failure | None = None
    slow = 0.0

    async def setup(self) -> None:
        self.setups += 1
        await self.ask(lambda saver: saver.adelete_thread("setup"))

    async def probe(self) -> None:
        await asyncio.sleep(self.slow)
        await super().probe()

    async def renew(self) -> None:
        self.renewed += 1

    def classify(self, error: BaseException) -> Failure:
        return replace(self.means, error=error) if self.means else classify_by_type(error)


class Setting:
    """A prober over a memory primary that can fail; its breaker tells it of an opening, as the manager's does."""

    def __init__(self, **fields: Any) -> None:
        times = {"deadline": 0.1, "probe_interval": 0.05, "probe_backoff_min": 0.01, "probe_backoff_max": 3600.0}
        config = create_memory_checkpointer(**{**times, **fields})
        self.backend = FaultyBackend(config, SharingSerializer())
        self.saver = FlakySaver(self.backend.saver)
        self.backend.saver = self.saver
        self.recorder = Recorder()
        self.transitions: list[bool] = []
        self.breaker = Breaker(now, BreakerSettings(), self._moved)
        guard = Guard(
            "memory",
            breaker=self.breaker,
            classify=self.backend.classify,
            saturated=self.backend.saturated,
            telemetry=self.recorder,
        )
        self.prober = Prober(
            config=config,
            backend=self.backend,
            guard=guard,
            breaker=self.breaker,
            telemetry=self.recorder,
            jitter=lambda: 0.5,
            clock=now,
        )

    def _moved(self, opened: bool, reason: str) -> None:
        self.transitions.append(opened)
        if opened:
            self.prober.hurry()

    async def run_for(self, seconds: float) -> int:
        """Let it run; the number of probes that it made."""
        before = len(self.recorder.of(ProbeFinished))
        task = asyncio.ensure_future(self.prober.run())
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return len(self.recorder.of(ProbeFinished)) - before


async def test_healthy_primary_is_found_healthy_and_nothing_is_left_of_the_probe() -> None:
    setting = Setting()
    assert await setting.prober.probe() is Finding.HEALTHY
    assert setting.prober.last_error is None
    assert setting.saver.calls["aput"] == 1, "a probe must prove a write"
    assert [found async for found in setting.saver.inner.alist(None)] == []
    (finished,) = setting.recorder.of(ProbeFinished)
    assert (finished.backend, finished.error_type) == ("memory", None)
    assert setting.backend.renewed == 0


async def test_primary_is_set_up_once_and_only_when_it_can_be_reached() -> None:
    setting = Setting()
    setting.saver.fail_with(ConnectionRefusedError("down"))
    await setting.prober.probe()
    setting.saver.heal()
    for _ in range(3):
        assert await setting.prober.probe() is Finding.HEALTHY
    assert setting.backend.setups == 2


async def test_refused_connection_opens_the_breaker_and_only_a_passed_probe_closes_it() -> None:
    setting = Setting()
    await setting.prober.probe()
    setting.saver.fail_with(ConnectionRefusedError("postgresql://ada:hunter2@host is down"))
    assert await setting.prober.probe() is Finding.UNREACHED
    assert setting.transitions == [True]
    assert setting.prober.last_error == "postgresql://ada:***@host is down"
    assert setting.recorder.of(ProbeFinished)[-1].error_type == "ConnectionRefusedError"
    setting.saver.heal()
    assert setting.breaker.is_open
    assert await setting.prober.probe() is Finding.HEALTHY
    assert setting.transitions == [True, False]
    assert setting.prober.last_error is None
    assert setting.backend.renewed == 1, "stale connections go before live calls come back"


async def test_doubts_are_settled_by_one_look_at_a_time() -> None:
    setting = Setting()
    await setting.prober.probe()
    setting.backend.slow = 0.02
    for _ in range(3):
        setting.prober.doubt()
    await asyncio.sleep(0.04)
    assert len(setting.recorder.of(ProbeFinished)) == 2
    setting.prober.doubt()
    await asyncio.sleep(0.04)
    assert len(setting.recorder.of(ProbeFinished)) == 3
    await setting.prober.close()


async def test_close_ends_the_look_that_is_under_way() -> None:
    setting = Setting()
    await setting.prober.probe()
    setting.backend.slow = 3600.0
    setting.prober.doubt()
    await asyncio.sleep(0.01)
    await setting.prober.close()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "checkpoint doubt"] == []


async def test_server_that_answers_with_a_refusal_is_refusing() -> None:
    setting = Setting()
    await setting.prober.probe()
    setting.backend.means = Failure(FailureKind.OUTAGE, OSError("starting up"), answered=True)
    setting.saver.fail_with(OSError("starting up"))
    assert await setting.prober.probe() is Finding.REFUSING
    assert setting.breaker.is_open


async def test_silent_server_is_silent_within_the_deadline() -> None:
    setting = Setting()
    await setting.prober.probe()
    setting.saver.hang()
    started_at = now()
    assert await setting.prober.probe() is Finding.SILENT
    assert now() - started_at == pytest.approx(0.1, abs=1.01 * TICK)
    assert setting.breaker.is_open


async def test_setup_that_fails_does_not_move_the_breaker_and_may_take_longer_than_a_call() -> None:
    setting = Setting()
    setting.saver.hang()
    probing = asyncio.ensure_future(setting.prober.probe())
    await asyncio.sleep(0.15)
    assert not probing.done()
    setting.saver.heal()
    assert await probing is Finding.HEALTHY
    assert setting.transitions == []


async def test_probe_that_passes_too_slowly_does_not_close_the_breaker() -> None:
    setting = Setting(deadline=0.2)
    await setting.prober.probe()
    setting.breaker.trip("slow")
    setting.backend.slow = 0.12
    assert await setting.prober.probe() is Finding.REFUSING
    assert setting.breaker.is_open
    setting.backend.slow = 0.0
    assert await setting.prober.probe() is Finding.HEALTHY
    assert not setting.breaker.is_open


@pytest.mark.parametrize("fix", ["Grant it.", ""])
async def test_fault_that_waiting_does_not_mend_is_announced_with_its_fix(fix: str) -> None:
    setting = Setting()
    setting.backend.means = Failure(FailureKind.CONFIGURATION, OSError(), answered=True, fix=fix)
    setting.saver.fail_with(PermissionError("password=hunter2 denied"))
    assert await setting.prober.probe() is Finding.REFUSING
    (fault,) = setting.recorder.of(ConfigurationFault)
    assert (fault.backend, fault.error, fault.fix) == ("memory", "password=*** denied", fix or "See the message.")


async def test_look_for_a_report_tells_what_is_wrong_but_never_closes_the_breaker() -> None:
    setting = Setting()
    await setting.prober.prove()
    setting.breaker.trip("down")
    await setting.prober.look()
    assert setting.breaker.is_open
    assert setting.prober.last_error is None
    setting.saver.fail_with(ConnectionRefusedError("down"))
    await setting.prober.look()
    assert setting.prober.last_error == "down"


async def test_look_for_a_report_leaves_the_setup_to_the_prober() -> None:
    setting = Setting()
    await setting.prober.look()
    assert setting.saver.calls.total() == 0


async def test_proof_that_passed_is_a_contact_with_the_primary() -> None:
    setting = Setting()
    contacts: list[bool] = []
    setting.prober._on_contact = lambda: contacts.append(True)
    await setting.prober.prove()
    setting.saver.fail_with(ConnectionRefusedError("down"))
    with pytest.raises(CallFailed):
        await setting.prober.prove()
    assert contacts == [True]


async def test_proof_raises_what_is_wrong() -> None:
    setting = Setting()
    assert 0 <= await setting.prober.prove() < 0.1
    setting.saver.fail_with(ConnectionRefusedError("down"))
    with pytest.raises(CallFailed, match="down"):
        await setting.prober.prove()


async def test_it_probes_at_intervals_while_all_is_well() -> None:
    setting = Setting(probe_interval=0.03)
    assert 2 <= await setting.run_for(0.14) <= 5


async def test_outage_that_a_live_call_found_is_probed_soon_although_the_interval_is_long() -> None:
    setting = Setting(probe_interval=3600.0)
    running = asyncio.ensure_future(setting.run_for(0.1))
    await asyncio.sleep(0.02)
    setting.breaker.trip("a live call failed")
    assert await running >= 1
    assert setting.transitions == [True, False]


async def test_outage_that_was_there_from_the_start_is_probed_soon() -> None:
    setting = Setting(probe_interval=3600.0)
    setting.breaker.trip("down at the start")
    assert await setting.run_for(0.1) >= 1
    assert setting.transitions == [True, False]


async def test_outage_that_the_probe_itself_found_is_probed_again_soon() -> None:
    """It must not go on from the pause of a healthy primary, which is ten times as long."""
    setting = Setting(probe_interval=0.1)
    await setting.prober.probe()
    setting.backend.means = Failure(FailureKind.OUTAGE, OSError(), answered=True)
    setting.saver.fail_with(OSError("starting up"))
    assert await setting.run_for(0.2) >= 3
    assert setting.transitions == [True]


async def test_outage_that_a_live_call_found_during_a_probe_is_probed_again_soon() -> None:
    setting = Setting(probe_interval=0.05, deadline=0.2)
    await setting.prober.probe()
    setting.backend.means = Failure(FailureKind.DATA, OSError(), answered=True)
    setting.backend.slow = 0.03
    setting.saver.fail_with(OSError("odd"))
    asyncio.get_running_loop().call_later(0.065, setting.breaker.trip, "a live call failed")
    assert await setting.run_for(0.7) >= 4, "three, were the pauses to grow from the interval"
