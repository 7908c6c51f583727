"""The checkpointer of LangGraph's own server, named in `langgraph.json`:

    "checkpointer": {"path": "enhanced_checkpointing.serving.langgraph_server.checkpointer"}

It is set up by the environment, as `initialize_enhanced_checkpointing()` is.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.checkpoint.base import BaseCheckpointSaver

from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.manager import EnhancedCheckpointerManager
from enhanced_checkpointing.settings import CheckpointerSettings

__all__ = ["checkpointer"]

_lock = threading.Lock()
_manager: EnhancedCheckpointerManager | None = None


@asynccontextmanager
async def checkpointer() -> AsyncIterator[BaseCheckpointSaver[str]]:
    """The saver of this process, for as long as its server runs.

    The server enters this once in each of its event loops, first of all in the one that starts and stops it, and may
    leave out to exit it in the others. So all of them share one manager, which lives on a loop of its own: who enters
    first opens and closes it. Two managers would each know only what went through them of a thread in an outage.

    Raises:
        CheckpointerConfigurationError: a setting is wrong, or `CHECKPOINT_ENABLED` is false.
    """
    global _manager
    with _lock:
        opens = _manager is None
        manager = _manager = _manager or EnhancedCheckpointerManager(
            CheckpointerSettings().to_config(enable_async=False)
        )
    try:
        await manager.initialize()
        saver = manager.get_checkpointer()
        if saver is None:
            raise CheckpointerConfigurationError(
                "CHECKPOINT_ENABLED is false, so there is no checkpointer to give to LangGraph's server: unset it, or "
                "take `checkpointer` out of langgraph.json and leave checkpoints to the server."
            )
        yield saver
    finally:
        if opens:
            with _lock:
                _manager = None
            await manager.cleanup()
