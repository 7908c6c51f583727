"""The official image, or one like it, through testcontainers: the whole container is paused under a running thread."""

from __future__ import annotations

import asyncio
import os

from tests.support.checkpointer import opened, postgres, recovered, saver_of
from tests.support.checkpoints import Thread
from tests.support.postgres import require_or_skip


async def test_container_that_is_paused_and_unpaused_loses_nothing() -> None:
    if os.environ.get("TEST_POSTGRES") != "containers":
        require_or_skip("this test needs a container engine: run `nox -s containers`")
    from testcontainers.community.postgres import PostgresContainer

    with PostgresContainer(os.environ.get("TEST_PG_IMAGE", "postgres:18"), driver=None) as container:
        async with opened(postgres(container.get_connection_url())) as manager:
            thread = Thread(saver_of(manager), "paused")
            for _ in range(3):
                await thread.put()
            engine = container.get_wrapped_container()
            await asyncio.to_thread(engine.pause)
            took = [await thread.timed_put() for _ in range(10)]
            await asyncio.to_thread(engine.unpause)
            assert max(took) <= 1.0 + 0.1 + 0.1
            await recovered(manager)
            assert manager.components.engine.journaling.journaled >= 10
            assert await thread.stored_ids() == thread.ids
