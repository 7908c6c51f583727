"""The faults that an application under test asks this process for, which alone can make them."""

from __future__ import annotations

import subprocess

import psycopg

from enhanced_checkpointing import EnhancedCheckpointerManager
from tests.support.checkpointer import postgres, saver_of
from tests.support.fault_proxy import ThreadedFaultProxy
from tests.support.graphs import GRAPHS


class Faults:
    """What the application may ask for, by the names of the methods: one line each on its standard output."""

    def __init__(self, url: str, proxy: ThreadedFaultProxy) -> None:
        self._url = url
        self.cut, self.heal = proxy.refuse, proxy.forward

    def terminate(self) -> None:
        """End the application's sessions once."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'enhanced-checkpointing'"
            )

    def diverge(self) -> None:
        """Write the thread `shared` as another process would; have the database refuse `refused` from now on."""
        with EnhancedCheckpointerManager(postgres(self._url, journal="memory")) as other:
            graph = GRAPHS["counting_chain"].builder().compile(checkpointer=saver_of(other))
            graph.invoke({"question": "who"}, {"configurable": {"thread_id": "shared"}})
        with psycopg.connect(self._url, autocommit=True) as connection:  # what the database alone knows to refuse
            connection.execute("ALTER TABLE checkpoints ADD CHECK (thread_id <> 'refused')")

    def serve(self, process: subprocess.Popen[str]) -> None:
        """Do what the application asks for, and answer with an empty line each time, until it ends."""
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            for fault in process.stdout:
                getattr(self, fault.strip())()
                print(file=process.stdin, flush=True)
        assert process.returncode == 0
