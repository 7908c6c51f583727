"""What ended processes left, as one journal comes to know it: which of it is its own, and what its operator is told."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

from enhanced_checkpointing.journal.disk import Disk
from enhanced_checkpointing.journal.frames import Signer
from enhanced_checkpointing.journal.inheritance import (
    Inheritance,
    Inherited,
    Settle,
    belongs,
    foreign_notices,
    in_order,
    inherit,
    stray_notice,
)
from enhanced_checkpointing.journal.refusals import reason
from enhanced_checkpointing.observability.events import Notice, Telemetry


class Estate:
    """Looks into the directory of the journal that is for the primary of this `home`. What was said is not said again.

    What is for another primary is left alone, unless it `adopts_all`. Without a home all of it is ours.
    """

    def __init__(
        self,
        disk: Disk,
        telemetry: Telemetry,
        wall_clock: Callable[[], float],
        *,
        home: str | None,
        adopts_all: bool,
        signer: Signer | None = None,
    ) -> None:
        self._disk = disk
        self._signer = signer
        self._telemetry = telemetry
        self._wall_clock = wall_clock
        self._is_ours = partial(belongs, ours=home, adopts_all=adopts_all)
        self._written_until = -math.inf
        self._foreign: Mapping[str, str] = {}
        """The books that are for other primaries, and the home of each."""
        self._strays: set[str] = set()
        self._fault: str | None = None

    @property
    def foreign(self) -> tuple[tuple[str, int], ...]:
        """For every home that is not ours, how many books there are."""
        return tuple(sorted(Counter(self._foreign.values()).items()))

    def now(self) -> float:
        """When something is written, by the wall clock, but after all that was inherited: after a clock that jumped
        back it would else be drained before what it grew from."""
        return max(self._wall_clock(), math.nextafter(self._written_until, math.inf))

    def inherit(self, held: Set[str], settle: Settle) -> Inheritance | None:
        """See `inheritance.inherit`; `held` are the identities of our own books. Runs where the disk may block."""
        return inherit(
            self._disk,
            self._wall_clock,
            self._is_ours,
            held=held,
            foreign=self._foreign,
            signer=self._signer,
            settle=settle,
        )

    def by_thread(self, inheritance: Inheritance, number: Callable[[], int]) -> dict[str, list[tuple[int, Inherited]]]:
        """What was left of each thread in its order, numbered over all threads; threads of which all is lost, too."""
        threads: dict[str, list[tuple[int, Inherited]]] = {}
        for each in in_order(inheritance.books):
            threads.setdefault(each.thread_id, []).append((number(), each))
            self._written_until = max(self._written_until, each.stamp)
        for found in inheritance.books:
            for thread_id in found.damaged_threads:
                threads.setdefault(thread_id, [])
        return threads

    def tell(self, inheritance: Inheritance, news: Sequence[str]) -> None:
        """Say what was inherited, what is damaged, what was left alone, and what else is `news`."""
        self._fault = None
        for what in news:
            self._say("WARNING", what)
        for found in inheritance.books:
            for fault in found.faults:
                self._say("ERROR", f"the journal is damaged: {fault}. Threads that may lack something are frozen")
            if found.records:
                count = len(found.records)
                self._say("WARNING", f"{count} operations that an earlier process acknowledged wait in the journal")
        for what in foreign_notices(inheritance.foreign, self._foreign):
            self._say("ERROR", what)
        self._foreign = inheritance.foreign
        if strays := [name for name in inheritance.strays if name not in self._strays]:
            self._strays.update(strays)
            self._say("WARNING", stray_notice(strays))

    def tell_fault(self, error: Exception) -> None:
        """Say why nothing can be inherited now. It is tried again and again, and said once."""
        fault = reason(error) if isinstance(error, OSError) else str(error)
        if fault != self._fault:
            what = f"what ended processes left in the journal cannot be adopted now, and is left as it is ({fault})"
            self._say("ERROR", what)
        self._fault = fault

    def _say(self, level: str, what: str) -> None:
        self._telemetry.emit(Notice(level, what))
