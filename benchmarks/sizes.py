"""The same writes with 1 KB, 20 KB and 1 MB of state, and with messages of LangChain, by 16 callers."""

from __future__ import annotations

from benchmarks.laboratory import LOOPBACK, Laboratory, Result, Table
from benchmarks.workload import MESSAGES, State
from benchmarks.writes import COLUMNS, Watch, compare_writes, note_figures, row_of

CALLERS = 16
STATES = (
    State("1 KB", 1_000 // MESSAGES - 22),  # a message's dictionary takes 22 bytes by itself
    State("20 KB", 20_000 // MESSAGES - 22),
    State("1 MB", 1_000_000 // MESSAGES - 22),
    State(f"{MESSAGES} messages of LangChain", langchain=True),
)


async def measure(laboratory: Laboratory) -> Result:
    result, rows = Result(), []
    for state in STATES:
        laboratory.say(f"state of {state.name}")
        async with laboratory.postgres_pair(LOOPBACK) as (pair, database):
            watch = Watch(laboratory, pair, database)
            comparison = await compare_writes(laboratory, pair, CALLERS, state, watch)
        rows.append((state.name, *row_of(comparison, watch)))
        note_figures(result, f"sizes/{state.name}", comparison, watch)
    title = f"Writes of states of other sizes, {CALLERS} callers, on loopback"
    result.tables.append(Table(title, ("state", *COLUMNS[1:]), rows))
    return result
