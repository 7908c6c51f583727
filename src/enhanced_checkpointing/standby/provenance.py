"""Who wrote what of one thread, as far as this process knows. Pure: no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from enhanced_checkpointing.operations import Put, PutWrites

TaskKey = tuple[str, str]
"""Checkpoint id, task id."""


class Authorship:
    """Tells the checkpoints of this process, and the steps that somebody else has run."""

    def __init__(self) -> None:
        self._written_here: set[str] = set()
        self._on_their_way: Counter[TaskKey] = Counter()
        """Tasks for which this process is writing something that is not acknowledged yet: how many calls of each."""
        self._ran_elsewhere: set[str] = set()
        """Checkpoints on which somebody else has run a task."""

    @property
    def own(self) -> Collection[str]:
        """The checkpoints that this process has made."""
        return self._written_here

    def note_own(self, operation: Put | PutWrites) -> None:
        """This process is about to write this: what belongs to such a checkpoint cannot be anywhere else yet, and such
        writes are not somebody else's when they are read before they are acknowledged."""
        if isinstance(operation, Put):
            self._written_here.add(operation.checkpoint_id)
        else:
            self._on_their_way[operation.checkpoint_id, operation.task_id] += 1

    def note_settled(self, operation: PutWrites) -> None:
        """Writes that this process has made are acknowledged now, or refused."""
        key = operation.checkpoint_id, operation.task_id
        if self._on_their_way[key] <= 1:
            del self._on_their_way[key]
        else:
            self._on_their_way[key] -= 1

    def note_refused(self, put: Put) -> None:
        """A checkpoint that this process has made was not acknowledged, and is not here."""
        self._written_here.discard(put.checkpoint_id)

    def note_others(self, checkpoint_id: str, task_ids: Collection[str]) -> bool:
        """Writes of these tasks were read that are not here. Whether any of them are somebody else's."""
        theirs = any((checkpoint_id, task_id) not in self._on_their_way for task_id in task_ids)
        if theirs:
            self.note_ran_elsewhere(checkpoint_id)
        return theirs

    def note_ran_elsewhere(self, checkpoint_id: str) -> None:
        """Somebody else has run a task of the step on a checkpoint."""
        self._ran_elsewhere.add(checkpoint_id)

    def ran_elsewhere(self, steps: Collection[str]) -> bool:
        """Whether it is known that somebody else has run a task of one of these steps."""
        return not self._ran_elsewhere.isdisjoint(steps)

    def keep(self, checkpoint_ids: Collection[str]) -> None:
        """Forget what this process has made but these."""
        self._written_here.intersection_update(checkpoint_ids)
