"""What is done to the database and the network, one fault at a time."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import psycopg

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres
from tests.support.fault_proxy import ThreadedFaultProxy

Switch = Callable[[], None]


class Faults:
    """Every kind of fault by its name: how it begins and how it ends."""

    def __init__(self, server: LocalPostgres, proxy: ThreadedFaultProxy, random: Random) -> None:
        self._server = server
        self._random = random
        heal = proxy.forward
        self._kinds: dict[str, tuple[Switch, Switch]] = {
            "server killed": (server.kill, server.start),
            "server frozen": (server.freeze, server.thaw),
            "server read-only": (lambda: self._set_read_only("on"), lambda: self._set_read_only("off")),
            "connections refused": (proxy.refuse, heal),
            "black hole": (proxy.black_hole, heal),
            "connections reset": (proxy.reset, heal),
            "reply lost": (proxy.drop_replies, heal),
            "reply cut short": (lambda: proxy.cut_after(self._random.randrange(1, 400)), heal),
            "slow network": (lambda: proxy.delay(self._random.uniform(0.05, 0.4)), heal),
        }
        self._deck: list[str] = []
        self.made = dict.fromkeys(self._kinds, 0)
        """How often each kind was begun."""

    def begin(self) -> tuple[str, Switch]:
        """Begin the next fault and return its kind and what ends it. Every kind comes once before any comes again."""
        if not self._deck:
            self._deck = self._random.sample(list(self._kinds), len(self._kinds))
        kind = self._deck.pop()
        begin, end = self._kinds[kind]
        begin()
        self.made[kind] += 1
        return kind, end

    def _set_read_only(self, value: str) -> None:
        with psycopg.connect(self._server.url(), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")
