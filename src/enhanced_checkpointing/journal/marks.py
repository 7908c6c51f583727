"""The bodies of the frames that say what became of records. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from enhanced_checkpointing.journal.frames import Draft, Kind

_RANGE = struct.Struct(">QQ")
_SEQUENCE = struct.Struct(">Q")
_NUMBER = struct.Struct(">I")


def applied(sequences: Iterable[int]) -> Draft:
    """The primary has these records."""
    ranges: list[tuple[int, int]] = []
    for sequence in sorted(sequences):
        if ranges and sequence == ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], sequence + 1)
        else:
            ranges.append((sequence, sequence + 1))
    return Draft(Kind.APPLIED, body=b"".join(_RANGE.pack(*part) for part in ranges))


def applied_in(draft: Draft) -> Sequence[int]:
    return [sequence for part in _RANGE.iter_unpack(draft.body) for sequence in range(*part)]


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
