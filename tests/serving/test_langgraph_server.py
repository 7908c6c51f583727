"""LangGraph's own server with this library as its checkpointer: loaded by its name, and kept through an outage."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from enhanced_checkpointing import CheckpointerConfigurationError, CheckpointerError
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, free_port
from enhanced_checkpointing.serving import langgraph_server
from tests.support.leaks import LeakWatch
from tests.support.postgres import require_or_skip

GRAPH = """
from langgraph.graph import START, MessagesState, StateGraph

def reply(state):
    said = [message.content for message in state["messages"] if message.type == "human"]
    return {"messages": [("ai", f"You said {len(said)} things, the first was: {said[0]}")]}

graph = StateGraph(MessagesState).add_node("reply", reply).add_edge(START, "reply").compile()
"""
PATH = "enhanced_checkpointing.serving.langgraph_server.checkpointer"
SETTINGS = {
    "dependencies": ["."],
    "graphs": {"chat": "./graph.py:graph"},
    "checkpointer": {"path": PATH},
}
AT_START = 60.0


class LangGraphServer:
    """`langgraph dev` as a process of its own, in a folder with a graph."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = environment
        self._port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and stop it as its operator does."""
        command = [
            sys.executable,
            "-m",
            "langgraph_cli",
            "dev",
            "--no-browser",
            "--no-reload",
            "--port",
            str(self._port),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_")}
        with (self._folder / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self._folder, env={**environment, **self._environment}, stdout=log, stderr=log
            )
        try:
            self._wait_until_ready(process)
            yield
        finally:
            process.terminate()
            assert process.wait(30) is not None
            self.client.close()

    @property
    def log(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")

    def begin(self) -> str:
        """A new thread."""
        return str(self._ask("POST", "/threads", {})["thread_id"])

    def say(self, thread_id: str, text: str) -> str:
        """What the graph answers."""
        turn = {"assistant_id": "chat", "input": {"messages": [{"role": "user", "content": text}]}}
        return str(self._ask("POST", f"/threads/{thread_id}/runs/wait", turn)["messages"][-1]["content"])

    def state(self, thread_id: str) -> list[str]:
        return [message["content"] for message in self._ask("GET", f"/threads/{thread_id}/state")["values"]["messages"]]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self.client.request(method, path, json=body)
        assert response.is_success, f"{response.text}\n{self.log[-4000:]}"
        return response.json()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + AT_START
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self.client.get("/ok").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"the server did not start:\n{self.log[-4000:]}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user of LangGraph's server writes."""
    if importlib.util.find_spec("langgraph_api") is None:
        require_or_skip("no LangGraph server: `pip install 'langgraph-cli[inmem]>=0.4'`")
    (tmp_path / "graph.py").write_text(GRAPH)
    (tmp_path / "langgraph.json").write_text(json.dumps(SETTINGS))
    return tmp_path


def test_settings_are_valid_for_langgraph_and_reach_its_image(folder: Path) -> None:
    for arguments in (["validate"], ["dockerfile", "Dockerfile"]):
        command = [sys.executable, "-m", "langgraph_cli", *arguments]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert PATH in (folder / "Dockerfile").read_text()


def test_conversation_goes_on_while_postgres_is_dead_and_is_all_there_when_it_is_back(
    folder: Path, private_postgres: LocalPostgres
) -> None:
    settings = {"CHECKPOINT_ENVIRONMENT": "production", "CHECKPOINT_DEADLINE": "3"}
    settings |= {"DATABASE_URL": private_postgres.url(), "BG_JOB_ISOLATED_LOOPS": "true"}
    server = LangGraphServer(folder, **settings)
    with server.running():
        assert "Using custom checkpointer: FailoverSaver" in server.log
        assert "Starting queue with isolated loops" in server.log, "the graph runs in another loop than the requests"
        thread = server.begin()
        assert server.say(thread, "good morning") == "You said 1 things, the first was: good morning"
        private_postgres.kill()
        assert server.say(thread, "still there") == "You said 2 things, the first was: good morning"
        assert server.state(thread)[::2] == ["good morning", "still there"]
        private_postgres.start()
        deadline = time.monotonic() + 20
        while checkpoints_of(private_postgres, thread) < 6:
            assert time.monotonic() < deadline, server.log[-4000:]
            time.sleep(0.1)
        assert server.say(thread, "and again") == "You said 3 things, the first was: good morning"
    assert "BlockingError" not in server.log, "nothing blocks the event loop"
    assert "Traceback" not in server.log
    assert checkpoints_of(private_postgres, thread) == 9


def checkpoints_of(server: LocalPostgres, thread_id: str) -> int:
    with psycopg.connect(server.url()) as connection:
        row = connection.execute("SELECT count(*) FROM checkpoints WHERE thread_id = %s", (thread_id,)).fetchone()
    assert row is not None
    return int(row[0])


async def test_all_event_loops_of_a_server_share_one_checkpointer(no_leaks: LeakWatch) -> None:
    """As the server enters it with isolated loops: first in its own, then in others, which may never leave."""
    config: Any = {"configurable": {"thread_id": "shared", "checkpoint_ns": ""}}
    others: list[object] = []

    async def elsewhere() -> None:
        entered = langgraph_server.checkpointer()
        saver = await entered.__aenter__()
        others.append(saver)
        assert await saver.aget_tuple(config) is None

    async with langgraph_server.checkpointer() as saver:
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert others == [saver]
        assert await saver.aget_tuple(config) is None
    with pytest.raises(CheckpointerError, match="closed"):
        await saver.aget_tuple(config)
    async with langgraph_server.checkpointer() as anew:
        assert anew is not saver


async def test_checkpointer_that_is_switched_off_is_refused_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, no_leaks: LeakWatch
) -> None:
    monkeypatch.setenv("CHECKPOINT_ENABLED", "false")
    with pytest.raises(CheckpointerConfigurationError, match=r"langgraph\.json"):
        async with langgraph_server.checkpointer():
            pass
    monkeypatch.delenv("CHECKPOINT_ENABLED")
    async with langgraph_server.checkpointer() as saver:
        assert saver is not None
