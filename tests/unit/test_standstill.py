"""A standstill of the machine is seen, and only a test that it met is run again."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.conftest import TRIES, AgainAfterStandstill
from tests.support.standstill import STANDSTILL, StandstillWatch


def test_watch_that_gets_no_processor_notes_for_how_long(tmp_path: Path) -> None:
    watch = StandstillWatch(tmp_path)
    watch.start()
    try:
        process = watch._process
        assert process is not None
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        time.sleep(3 * STANDSTILL)
        process.send_signal(signal.SIGCONT)
        give_up_at = began + 20.0
        while not watch.longest_since(began) and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert watch.longest_since(began) > STANDSTILL
        assert watch.longest_since(time.monotonic() + 60.0) == 0.0
        asked_at = time.monotonic()
        watch.wait_for_calm(0.1)
        assert time.monotonic() - asked_at >= 0.1, "it was not calm for a while"
    finally:
        watch.stop()


@pytest.mark.parametrize(("still", "runs"), [(True, TRIES), (False, 1)])
def test_failed_test_is_run_again_only_if_the_machine_stood_still(
    still: bool, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgainAfterStandstill, "stood_still", lambda *_: still)
    (tmp_path / f"test_late_{runs}.py").write_text(
        "from pathlib import Path\n\n"
        "def test_late() -> None:\n"
        "    with Path('runs').open('a') as runs:\n"
        "        runs.write('.')\n"
        "    raise AssertionError\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(tmp_path), str(tmp_path)]
    assert pytest.main(options, plugins=[AgainAfterStandstill()]) == pytest.ExitCode.TESTS_FAILED
    assert Path("runs").read_text() == "." * runs
