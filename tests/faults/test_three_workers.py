"""Workers that share a journal directory never answer with an older state than one of them has acknowledged: FAULTS
rows 47, 47b and 51. A turn may be refused; that is what sticky threads, and a directory for each worker, spare."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

from enhanced_checkpointing.cli.demo.postgres_server import LocalPostgres, free_port
from tests.support.fault_proxy import FaultProxy
from tests.support.three_workers import CONVERSATIONS, Fleet, Tally, fleet


async def short_outages(server: LocalPostgres, fleet: Fleet, *, restarts: bool) -> None:
    """Three outages; in each of them one worker is killed and started again, if it `restarts`."""
    await asyncio.sleep(0.5)
    for worker in fleet.workers:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.8)
        if restarts:
            await worker.kill()
            await worker.start()
        await asyncio.sleep(0.4)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(1.5)


async def cut_off_in_turn(proxies: list[FaultProxy]) -> None:
    await asyncio.sleep(0.5)
    for proxy in [*proxies, *proxies]:
        proxy.refuse()
        await asyncio.sleep(0.8)
        proxy.forward()
        await asyncio.sleep(0.8)


def holds(tally: Tally) -> bool:
    sys.stdout.write(f"{tally}\n")  # shown by `pytest -s`
    assert not tally.unhealthy, tally.unhealthy
    assert not tally.backwards, tally.backwards[:5]
    assert set(tally.lost) <= tally.told, tally.lost
    return tally.answered > CONVERSATIONS


async def test_turns_that_go_to_any_worker_in_outages_are_the_newest_or_refused(
    private_postgres: LocalPostgres, tmp_path: Path
) -> None:
    url = private_postgres.url()
    async with fleet([url] * 3, tmp_path / "journal") as workers:
        tally = await workers.talk_during(lambda: short_outages(private_postgres, workers, restarts=False))
        workers.look(url)
    assert holds(tally)


async def test_worker_that_is_restarted_in_an_outage_shows_nothing_older_than_its_predecessor_acknowledged(
    private_postgres: LocalPostgres, tmp_path: Path
) -> None:
    url = private_postgres.url()
    async with fleet([url] * 3, tmp_path / "journal") as workers:
        tally = await workers.talk_during(lambda: short_outages(private_postgres, workers, restarts=True))
        workers.look(url)
    assert holds(tally)


async def test_worker_that_is_cut_off_alone_and_those_that_are_not_never_show_an_older_state(
    database_url: str, tmp_path: Path
) -> None:
    server, port = urlsplit(database_url), free_port()
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(
                FaultProxy(str(server.hostname), server.port or 5432, address=f"127.0.0.{number}", port=port)
            )
            for number in (2, 3, 4)
        ]
        urls = [  # of one name, as the database of one application has
            f"{proxy.url(database_url).replace(proxy.address, 'database', 1)}?hostaddr={proxy.address}"
            for proxy in proxies
        ]
        workers = await stack.enter_async_context(fleet(urls, tmp_path / "journal"))
        tally = await workers.talk_during(lambda: cut_off_in_turn(proxies))
        workers.look(database_url)
    assert holds(tally)
