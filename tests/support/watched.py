"""A process of its own that runs commands and starts under an audit hook, and tells what each did to the machine: which
processes it began, what it imported, and which files it opened to write. A hook cannot be taken away again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.support.terminal import Ended

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.",
    "pickle.find_class",
)
CHANGING = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
START = "start"
"""A word that is no command: an application starts with the configuration that follows, drains, and stops."""


@dataclass
class Watched:
    """The process, asked from outside."""

    process: subprocess.Popen[str]

    def run(self, *words: object) -> tuple[Ended, list[list[str]]]:
        """Run a command there; returns how it ended, and the events that it caused: name and arguments."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        return Ended(told["code"], told["out"], told["err"], told["seconds"]), told["events"]


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """The process, in a working directory; it ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.watched"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join([ROOT, str(folder)])},
        cwd=folder,
    ) as process:
        try:
            yield Watched(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


ROOT = str(Path(__file__).parents[2])


class Hook:
    """Notes what happens while it is on, in any thread."""

    def __init__(self) -> None:
        self.events: list[list[str]] = []
        self.is_on = False
        self._busy = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or getattr(self._busy, "inside", False):
            return
        self._busy.inside = True
        try:
            told = self._told(event, arguments)
            if told is not None:
                self.events.append(told)
        finally:
            self._busy.inside = False

    def _told(self, event: str, arguments: tuple[Any, ...]) -> list[str] | None:
        if event == "open":
            path, mode, flags = arguments
            writes = flags & WRITING if isinstance(flags, int) else bool({*(mode or "")} & {*"wax+"})
            return [event, os.fsdecode(path)] if writes and not isinstance(path, int) else None
        if event == "import":
            return [event, str(arguments[0])]
        if event.startswith((*FORBIDDEN, *CHANGING)) or event == "sqlite3.connect":
            return [
                event,
                *(os.fsdecode(one) if isinstance(one, (bytes, os.PathLike)) else str(one) for one in arguments),
            ]
        return None


def where(module: str) -> str:
    """The file that a module was made of, if it was."""
    return str(getattr(sys.modules.get(module), "__file__", None) or "")


async def start(fields: dict[str, Any]) -> None:
    """An application's life, without a read of its own."""
    from enhanced_checkpointing import CheckpointerConfig, CheckpointerError, EnhancedCheckpointerManager
    from tests.support.hostile import PERMISSIVE

    async with EnhancedCheckpointerManager(CheckpointerConfig(serde=PERMISSIVE, **fields)) as manager:
        await manager.wait_drained(5.0)
        await manager.list_threads()
        await manager.health_check()
        with suppress(CheckpointerError):  # what is damaged may hold something of the run
            await manager.delete_for_runs(["run"])


def main(answers: IO[str]) -> None:
    from tests.support.terminal import command

    hook = Hook()
    sys.addaudithook(hook)
    for line in sys.stdin:
        words = json.loads(line)
        hook.events, hook.is_on = [], True
        try:
            if words[0] == START:
                asyncio.run(start(json.loads(words[1])))
                ended = Ended(0, "", "", 0.0)
            else:
                ended = command(*words)
        except BaseException as error:  # noqa: BLE001  # whatever ends it is the answer
            ended = Ended(-1, "", f"Traceback: {type(error).__name__}: {error}", 0.0)
        hook.is_on = False
        events = [[*one, where(one[1])] if one[0] == "import" else one for one in hook.events]
        told = {"code": ended.code, "out": ended.out, "err": ended.err, "seconds": ended.seconds, "events": events}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.stdout)
