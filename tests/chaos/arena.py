"""START HERE: puts up server, proxy and worker, breaks them for a while, and has the result judged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.chaos.faults import Faults
from tests.chaos.judge import Judge
from tests.chaos.plan import Ledger, LedgerReader, WorkerOptions
from tests.chaos.report import Verdict
from tests.chaos.tally import Tally
from tests.chaos.twins import SAME_ORDER
from tests.support.fault_proxy import ThreadedFaultProxy
from tests.support.postgres import create_database, postgres_binaries

PROJECT = Path(__file__).parents[2]
SECONDS_TO_START = 60.0
SECONDS_TO_FINISH = 180.0
SECONDS_BETWEEN_LINES = 5.0
SHARE_OF_KILLS = 0.15
"""How many of the moments between two switches of a fault also see our own process killed."""


@dataclass(frozen=True)
class Options:
    """How long to break things, and whether our own process is killed too. Times are seconds."""

    seconds: float
    seed: int
    kills: bool
    deadline: float = 2.0


class Arena:
    """A context: the server and the proxy live as long as it. `say` gets a line of progress every few seconds."""

    def __init__(self, options: Options, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._random = random.Random(options.seed)
        self._stack = ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None
        self._deaths: list[str] = []
        self._next_line_at = 0.0
        self.kills = 0
        self.tally = Tally(options.deadline)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            server = stack.enter_context(LocalPostgres(postgres_binaries()))
            self.url, self.twin_url = create_database(server.url()), create_database(server.url())
            proxy = stack.enter_context(ThreadedFaultProxy("127.0.0.1", server.port))
            self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
            self._for_worker = WorkerOptions(
                proxy.url(self.url), str(self.folder), self._options.seed, self._options.deadline
            )
            self._ledger, self._reader = Ledger(self._for_worker.ledger), LedgerReader(self._for_worker.ledger)
            self._faults = Faults(server, proxy, self._random)
            stack.callback(self._ledger.close)
            stack.callback(self._kill_worker)
            self._stack = stack.pop_all()
        self._began_at = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def play(self) -> None:
        """Run the graphs under faults for as long as the options say, let them finish and drain; run the twins."""
        self._start_worker()
        self._wait_for(lambda: self.tally.started == self._worker_id, SECONDS_TO_START)
        end_at = time.monotonic() + self._options.seconds
        while time.monotonic() < end_at:
            self._pass(self._random.uniform(0.5, 2.5))
            kind, end = self._faults.begin()
            self._ledger.note("fault", what=kind, at=time.monotonic())
            self._pass(self._random.uniform(0.5, 4.0))
            end()
            self._ledger.note("healed", at=time.monotonic())
        self._finish()
        twins = [sys.executable, "-m", "tests.chaos.twins", self.twin_url]
        subprocess.run(twins, cwd=PROJECT, env=os.environ | SAME_ORDER, check=True)

    def judge(self) -> Verdict:
        """Compare what is in the database now with what was acknowledged and with the twins."""
        judge = Judge(self.url, self.twin_url, self._options.seed)
        return Verdict(
            tally=self.tally,
            faults=self._faults.made,
            kills=self.kills,
            lost=judge.lost(self.tally),
            differing=judge.differing(self.tally),
            deaths=self._deaths,
        )

    def forget(self) -> None:
        """Remove the ledger and the journal, which only a failure needs."""
        shutil.rmtree(self.folder)

    def _finish(self) -> None:
        """Have the worker finish its runs and drain. Not before it has started: it would end without a word."""
        self._wait_for(lambda: self.tally.started == self._worker_id, SECONDS_TO_START)
        if (worker := self._worker) is not None:
            worker.send_signal(signal.SIGTERM)
            self._wait_for(lambda: worker.poll() is not None, SECONDS_TO_FINISH)
            if self._worker is not None and worker.returncode != 0:
                self._deaths.append(f"the last worker ended with {worker.returncode}:\n{self._last_words()}")
        self._look()

    def _start_worker(self) -> None:
        command = [sys.executable, "-m", "tests.chaos.worker", json.dumps(asdict(self._for_worker))]
        with (self.folder / "worker.log").open("ab") as log:
            self._worker = subprocess.Popen(
                command, cwd=PROJECT, env=os.environ | SAME_ORDER, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def _worker_id(self) -> int | None:
        return self._worker.pid if self._worker is not None else None

    def _kill_worker(self) -> None:
        if self._worker is not None:
            self._ledger.note("killed", at=time.monotonic())
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def _pass(self, seconds: float) -> None:
        """Let time pass, and in some of it kill the worker and start it again."""
        kill_after = self._random.uniform(0, seconds) if self._random.random() < SHARE_OF_KILLS else None
        if kill_after is not None and self._options.kills:
            self._sleep(kill_after)
            seconds -= kill_after
            self._kill_worker()
            self.kills += 1
            self._start_worker()
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        end_at = time.monotonic() + seconds
        while (left := end_at - time.monotonic()) > 0:
            self._look()
            if self._worker is not None and (code := self._worker.poll()) is not None:
                self._deaths.append(f"a worker ended by itself with {code}:\n{self._last_words()}")
                self._start_worker()
            time.sleep(min(left, 0.1))

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        give_up_at = time.monotonic() + seconds
        while not condition():
            self._look()
            ended = self._worker is None or self._worker.poll() is not None
            if time.monotonic() > give_up_at or (ended and not condition()):
                what = f"a worker ended, or did not come to its point in {seconds:.0f} s"
                self._deaths.append(f"{what}:\n{self._last_words()}")
                self._kill_worker()
                return
            time.sleep(0.1)

    def _last_words(self) -> str:
        return "\n".join((self.folder / "worker.log").read_text(errors="replace").splitlines()[-30:])

    def _look(self) -> None:
        self.tally.take(self._reader.news())
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + SECONDS_BETWEEN_LINES
            self._say(
                f"{time.monotonic() - self._began_at:5.0f} s  {len(self.tally.done)} runs done, "
                f"{len(self.tally.failed)} failed, {sum(self._faults.made.values())} faults, {self.kills} kills, "
                f"{self.tally.operations} operations acknowledged, {self.tally.journaled} of them journaled"
            )
