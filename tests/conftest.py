"""Fixtures of all tests: PostgreSQL servers, databases, a watch for leaks; and the runner of `async def` tests.

A test that fails while the machine stood still is run again; the summary tells of each.

Asynchronous fixtures do not exist here: such a test uses asynchronous context managers instead.
"""

from __future__ import annotations

import asyncio
import inspect
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from enhanced_checkpointing.backends.postgres import backend as postgres
from enhanced_checkpointing.backends.postgres.rows import statements
from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.databases import Databases
from tests.support.fuzz import examples
from tests.support.leaks import LeakWatch
from tests.support.postgres import ClusterTemplate, PostgresServer, running_postgres
from tests.support.standstill import LOOK_EVERY, StandstillWatch
from tests.support.virtual_time import new_loop

settings.register_profile(
    "crowded", deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("crowded")
"""How long an example takes says how busy the machine is, and nothing about the code."""


TRIES = 3
"""How often a test is run at most, as long as the machine stands still each time."""

PATIENCE = 300.0
"""Seconds that all of them together may wait for a machine that runs."""


class AgainAfterStandstill:
    """Has a failed test run again, but only where the machine stood still meanwhile."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="standstill-"))
        self._watch = StandstillWatch(self._folder)
        self._began_at = 0.0
        self._patience = PATIENCE

    def pytest_sessionstart(self) -> None:
        self._watch.start()

    def pytest_sessionfinish(self) -> None:
        self._watch.stop()
        shutil.rmtree(self._folder)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.flaky(reruns=TRIES - 1, condition=self.stood_still))

    def pytest_runtest_setup(self) -> None:
        self._began_at = time.monotonic()

    def stood_still(self, error: BaseException | None) -> bool:
        """Whether a test met an error while the machine stood still. Returns when that runs again, if it soon does."""
        if error is None:
            return False
        time.sleep(2 * LOOK_EVERY)  # the watch may have stood still until now, too
        if not self._watch.longest_since(self._began_at):
            return False
        asked_at = time.monotonic()
        self._watch.wait_for_calm(self._patience)
        self._patience -= time.monotonic() - asked_at
        return True


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if (count := getattr(config, "failures_db", None)) is not None and hasattr(count, "sock"):
        # Each test is noted in two messages, the second of which waits for a late word of the first: 0.04 s.
        count.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):  # else the workers run the tests
        config.pluginmanager.register(AgainAfterStandstill())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test in an event loop of its own, and what asks for `no_leaks` under its watch."""
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    watch = pyfuncitem.funcargs.get("no_leaks")
    if isinstance(watch, LeakWatch):
        watch.run(pyfuncitem.obj, arguments)
        return True
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        on_virtual_time = pyfuncitem.get_closest_marker("virtual_time") is not None
        with asyncio.Runner(loop_factory=new_loop if on_virtual_time else None) as runner:
            runner.run(pyfuncitem.obj(**arguments))
        return True
    return None


@pytest.fixture(autouse=True)
def directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a working directory of its own, in which its journals are."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def cluster_template() -> Iterator[ClusterTemplate]:
    """Makes servers of one's own cheaply: `with cluster_template.server({"max_connections": "10"}) as server:`."""
    template = ClusterTemplate()
    yield template
    template.remove()


@pytest.fixture(scope="session")
def postgres_server(cluster_template: ClusterTemplate) -> Iterator[PostgresServer]:
    """One server for all tests that leave it healthy."""
    with running_postgres(cluster_template) as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres_server: PostgresServer) -> Iterator[Databases]:
    """Empty databases on the shared server."""
    databases = Databases(postgres_server.url())
    yield databases
    databases.remove()


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The URL of an empty database on the shared server."""
    with databases.one() as url:
        yield url


@pytest.fixture
def twin_database_url(databases: Databases) -> Iterator[str]:
    """A second one, for the run without faults that a faulty run is compared with."""
    with databases.one() as url:
        yield url


@pytest.fixture
def private_postgres(cluster_template: ClusterTemplate) -> Iterator[LocalPostgres]:
    """A server of this test's own, to be killed, frozen and restarted."""
    with cluster_template.server() as server:
        yield server


@pytest.fixture
def no_leaks() -> LeakWatch:
    """A test that asks for it fails when it leaves tasks, threads or descriptors behind; it may set `grace_seconds`."""
    return LeakWatch()


@pytest.fixture(params=["values", "arrays"])
def form_of_statements(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few operations as they go to PostgreSQL, and in the form that many have."""
    if request.param == "arrays":
        monkeypatch.setattr(postgres, "statements", partial(statements, apart=0))
