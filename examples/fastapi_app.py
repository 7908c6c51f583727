"""A chat service. Run it: `pip install fastapi uvicorn`, then `uvicorn examples.fastapi_app:app`.

Its status page, probes and metrics are under /checkpointing/. It needs no database: the development profile keeps
checkpoints in memory. With CHECKPOINT_ENVIRONMENT=production and DATABASE_URL set it keeps them in PostgreSQL, and goes
on answering while that is down.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from enhanced_checkpointing import (
    CheckpointNotFoundError,
    CheckpointUnavailableError,
    initialize_enhanced_checkpointing,
)
from enhanced_checkpointing.serving import checkpointing_app
from enhanced_checkpointing.telemetry.configure import configure_telemetry


def reply(state: MessagesState) -> dict[str, Any]:
    """Stands for a model: what it answers shows that it remembers."""
    said = [str(message.content) for message in state["messages"] if message.type == "human"]
    return {"messages": [("ai", f"You said {len(said)} things, the first was: {said[0]}")]}


builder = StateGraph(MessagesState).add_node("reply", reply).add_edge(START, "reply")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    manager = await initialize_enhanced_checkpointing()
    try:
        app.state.manager = manager
        app.state.graph = builder.compile(checkpointer=manager.get_checkpointer())
        app.mount("/checkpointing", checkpointing_app(manager))
        yield
    finally:
        await manager.cleanup()


app = FastAPI(lifespan=lifespan)


class Message(BaseModel):
    """What a user says."""

    text: str


User = Annotated[str, Header(alias="X-Forwarded-User")]
"""Who asks, as the gateway in front says that has proven it; it must drop this header where a client sends it."""


@app.post("/threads/{thread_id}/messages")
async def chat(thread_id: str, message: Message, request: Request, user: User = "anonymous") -> dict[str, str]:
    state = request.app.state
    thread = state.manager.create_thread_config(thread_id, user_id=user)
    answer = await state.graph.ainvoke({"messages": [("user", message.text)]}, thread)
    return {"reply": str(answer["messages"][-1].content)}


@app.exception_handler(CheckpointUnavailableError)
async def not_known_now(request: Request, error: CheckpointUnavailableError) -> JSONResponse:
    """The thread may exist, but nobody can read it now: the client should try again, not start afresh."""
    return JSONResponse({"detail": "This conversation cannot be read now. Try again."}, 503, {"Retry-After": "5"})


@app.exception_handler(CheckpointNotFoundError)
async def not_there(request: Request, error: CheckpointNotFoundError) -> JSONResponse:
    """A thread belongs to whoever began it: for another user it does not exist."""
    return JSONResponse({"detail": "There is no such conversation."}, 404)


@asynccontextmanager
async def observed(app: FastAPI) -> AsyncIterator[None]:
    """Sends spans and metrics to a Collector, the last ones when all else is closed."""
    stop_telemetry = configure_telemetry()
    try:
        async with lifespan(app):
            yield
    finally:
        stop_telemetry()


if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
    app.router.lifespan_context = observed
