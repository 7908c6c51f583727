"""The bodies of the frames that say what became of records. Pure."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from operator import itemgetter

from enhanced_checkpointing.journal.frames import Draft, Kind

_RANGE = struct.Struct(">QQ")
_SEQUENCE = struct.Struct(">Q")
_NUMBER = struct.Struct(">I")


Range = tuple[int, int]
"""The first sequence, and the one after the last."""


class Sequences:
    """A set of sequences, kept as ranges: one mark may name any number of them."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self.ranges: list[Range] = []
        """Ascending, with gaps between them."""
        for start, end in sorted(ranges):
            if self.ranges and start <= self.ranges[-1][1]:
                self.ranges[-1] = (self.ranges[-1][0], max(end, self.ranges[-1][1]))
            else:
                self.ranges.append((start, end))

    def __contains__(self, sequence: int | None) -> bool:
        at = bisect_right(self.ranges, sequence, key=itemgetter(0)) if sequence is not None else 0
        return at > 0 and sequence is not None and sequence < self.ranges[at - 1][1]

    def add(self, ranges: Iterable[Range]) -> None:
        for start, end in ranges:
            first = bisect_left(self.ranges, start, key=itemgetter(1))
            last = bisect_right(self.ranges, end, key=itemgetter(0))
            joined = self.ranges[first:last]
            starts, ends = zip((start, end), *joined, strict=True)
            self.ranges[first:last] = [(min(starts), max(ends))]

    def since(self, oldest: int) -> Sequences:
        """Those that are not before `oldest`."""
        return Sequences((max(start, oldest), end) for start, end in self.ranges if end > oldest)


def applied(sequences: Iterable[int]) -> Draft:
    """The primary has these records."""
    return applied_ranges(Sequences((sequence, sequence + 1) for sequence in sequences))


def applied_ranges(sequences: Sequences) -> Draft:
    return Draft(Kind.APPLIED, body=b"".join(_RANGE.pack(*part) for part in sequences.ranges))


def applied_in(draft: Draft) -> Sequence[Range]:
    return list(_RANGE.iter_unpack(draft.body))


def buried(sequence: int, error: str) -> Draft:
    """The primary refused this record for good."""
    return Draft(Kind.BURIED, body=_SEQUENCE.pack(sequence) + error.encode(errors="backslashreplace"))


def buried_in(draft: Draft) -> tuple[int, str]:
    return _SEQUENCE.unpack_from(draft.body)[0], draft.body[_SEQUENCE.size :].decode()


def diverted(thread_id: str, target: str) -> Draft:
    """What is journaled of a thread goes into another one."""
    return Draft(Kind.DIVERTED, thread_id, target.encode())


def diverted_in(draft: Draft) -> tuple[str, str]:
    return draft.thread_id, draft.body.decode()


def retired(number: int) -> Draft:
    """This file is not needed any more."""
    return Draft(Kind.RETIRED, body=_NUMBER.pack(number))


def retired_in(draft: Draft) -> int:
    return int(_NUMBER.unpack(draft.body)[0])


def check(draft: Draft, sequence: int) -> None:
    """See that a frame of this sequence says something: of records, only of those before it.

    Raises:
        ValueError, struct.error: it does not, although its bytes are what was written.
    """
    if draft.kind is Kind.APPLIED:
        before = 0
        for start, end in applied_in(draft):
            if not before < start < end <= sequence:
                raise ValueError("ranges that are none")
            before = end
    elif draft.kind is Kind.BURIED:
        buried, _ = buried_in(draft)
        if buried >= sequence:
            raise ValueError("a record that is not before it")
    elif draft.kind is Kind.DIVERTED:
        diverted_in(draft)
    elif draft.kind is Kind.RETIRED:
        retired_in(draft)
