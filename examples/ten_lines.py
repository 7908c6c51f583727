"""All that an application needs. Run it: `python examples/ten_lines.py`.

It needs no database: the development profile keeps checkpoints in memory. With CHECKPOINT_ENVIRONMENT=production and
DATABASE_URL set it keeps them in PostgreSQL, and every run goes on with the same conversation.
"""

import asyncio

from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph

from enhanced_checkpointing import initialize_enhanced_checkpointing

builder = StateGraph(MessagesState).add_node("reply", lambda state: {"messages": [("ai", "I am here.")]})


async def main() -> None:
    async with await initialize_enhanced_checkpointing() as manager:
        graph = builder.add_edge(START, "reply").compile(checkpointer=manager.get_checkpointer())
        print(await graph.ainvoke({"messages": [HumanMessage("Hello")]}, manager.create_thread_config("one")))


asyncio.run(main())
