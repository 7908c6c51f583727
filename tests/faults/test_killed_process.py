"""Our own process is killed while it appends and while it replays: FAULTS rows 22 and 23."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("TEST_KILLS", "200"))


@pytest.mark.timeout(300 + KILLS)
def test_process_that_is_killed_while_it_appends_and_replays_loses_nothing(database_url: str, tmp_path: Path) -> None:
    # In a process of its own, which forks before it has any thread.
    command = [sys.executable, "-m", "tests.support.killed_process", database_url, "--kills", str(KILLS)]
    ended = subprocess.run(
        [*command, "--journal-dir", str(tmp_path / "journal")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300 + KILLS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    tally = json.loads(ended.stdout)
    assert tally["killed_appending"] + tally["killed_replaying"] == KILLS
    assert tally["acknowledged"] > KILLS
    assert (tally["lost"], tally["resurrected"], tally["out_of_order"], tally["frozen"]) == ([], [], [], 0)
    assert os.listdir(tmp_path / "journal") == []
