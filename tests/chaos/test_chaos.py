"""A short chaos run keeps every promise; and it can fail: what is taken out of the database is missed."""

from __future__ import annotations

import logging
from dataclasses import replace

import psycopg
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.memory import InMemorySaver

from tests.chaos.__main__ import options_from
from tests.chaos.arena import Arena
from tests.chaos.tally import Tally
from tests.support.graphs import GRAPHS, Durability

A_ROW = "ctid = (SELECT min(ctid) FROM {0} WHERE thread_id = %(thread)s AND {1})"
PLANTED = {
    "checkpoint": "DELETE FROM checkpoints WHERE " + A_ROW.format("checkpoints", "parent_checkpoint_id IS NULL"),
    "write": "DELETE FROM checkpoint_writes WHERE " + A_ROW.format("checkpoint_writes", "channel = 'log'"),
    "blob": "DELETE FROM checkpoint_blobs WHERE " + A_ROW.format("checkpoint_blobs", "channel = 'log'"),
}


@pytest.mark.timeout(240)
def test_chaos_run_keeps_every_promise_and_misses_whatever_is_taken_out() -> None:
    options = replace(options_from(["--seed", "3"]), seconds=8.0)
    with Arena(options, logging.getLogger(__name__).info) as arena:
        arena.play()
        verdict = arena.judge()
        assert verdict.problems == []
        assert verdict.exit_code == 0
        assert len(verdict.tally.done) > len(PLANTED)
        assert sum(verdict.faults.values()) > 0
        whole = iter(f"-{kind}-" for kind in ("unchanged_channel", "parallel", "counting_chain"))
        for number, (what, statement) in enumerate(PLANTED.items(), start=1):
            kind = next(whole)
            thread = next(name for name in sorted(verdict.tally.acknowledged) if kind in name and "-exit-" not in name)
            with psycopg.connect(arena.url, autocommit=True) as connection:
                assert connection.execute(statement.encode(), {"thread": thread}).rowcount == 1
            verdict = arena.judge()
            assert verdict.exit_code == 1
            assert (thread in verdict.lost) == (what != "blob"), "no acknowledgement names a blob: its twin has it"
            assert thread in verdict.differing or thread in verdict.lost
            assert len(verdict.differing.keys() | verdict.lost.keys()) == number
        arena.forget()


class CutOffSaver(InMemorySaver):
    """Loses its process, as it were, at the next checkpoint of this namespace."""

    cut_at: str | None = None

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        if config["configurable"]["checkpoint_ns"] == self.cut_at:
            raise ConnectionAbortedError
        return await super().aput(config, checkpoint, metadata, new_versions)


@pytest.mark.parametrize(
    ("durability", "cut_at", "goes_on_with_turn", "said"),
    [("sync", "notebook", False, "why 1 notes"), ("exit", "", True, "what 3 notes")],
)
async def test_cut_off_memory_of_a_subgraph_is_langgraphs_doing(
    durability: Durability, cut_at: str, goes_on_with_turn: bool, said: str
) -> None:
    case, saver = GRAPHS["stateful_subgraph"], CutOffSaver()
    graph = case.builder().compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": "thread"}}
    await graph.ainvoke(case.turns[0], config, durability=durability)
    saver.cut_at = cut_at
    with pytest.raises(ConnectionAbortedError):
        await graph.ainvoke(case.turns[1], config, durability=durability)
    saver.cut_at = None
    result = await graph.ainvoke(case.turns[1] if goes_on_with_turn else None, config, durability=durability)
    assert result["log"][-1].startswith(f"reply: {said}"), "without the cut: what 2 notes"


def test_late_call_is_excused_only_for_the_time_in_which_the_event_loop_stood_still() -> None:
    tally = Tally(deadline=2.0)
    tally.take([{"kind": "slow", "since": 10.0, "until": 12.5}, {"kind": "stall", "since": 11.0, "until": 11.3}])
    assert tally.late_calls == 1
    tally.take([{"kind": "stall", "since": 12.3, "until": 13.0}])
    assert tally.late_calls == 0
    assert tally.worst == 2.5
    assert tally.worst_without_stalls == pytest.approx(2.0)


def test_run_that_never_ends_and_a_journal_that_is_not_drained_are_problems() -> None:
    tally = Tally(deadline=2.0)
    tally.take([{"kind": "begun", "run": 1}, {"kind": "begun", "run": 2}, {"kind": "done", "run": 1}])
    tally.take([{"kind": "ended", "drained": False, "journal": {"pending": 3}}])
    assert tally.problems() == ["never finished: runs [2]", "the journal was not drained: {'pending': 3}"]
