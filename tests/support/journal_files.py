"""Journal files made frame by frame, to be damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from enhanced_checkpointing.journal.format import (
    NO_HASH,
    Draft,
    FileHeader,
    Kind,
    Predecessor,
    file_head,
    frame_bytes,
    hash_of,
)

BOOK = bytes(range(16))
CANARY = Draft(Kind.SELF_CHECK, written_at=1.0)


def record(thread_id: str, body: bytes = b"body") -> Draft:
    return Draft(Kind.RECORD, thread_id, body, 1.0)


class FileMaker:
    """One file; `parts` are its header and its frames, in their order."""

    def __init__(
        self,
        number: int = 1,
        first_sequence: int = 1,
        previous_hash: bytes = NO_HASH,
        predecessors: Sequence[Predecessor] = (),
        log: bytes = BOOK,
    ) -> None:
        header = FileHeader(log, number, 1.0, first_sequence, previous_hash, tuple(predecessors))
        self.parts = [file_head(header)]
        self.next_sequence = first_sequence
        self.previous_hash = previous_hash
        self._counts: Counter[str] = Counter()

    def write(self, *drafts: Draft) -> FileMaker:
        """Add frames that are written together."""
        batch = self.next_sequence
        for draft in drafts:
            if draft.kind is Kind.RECORD:
                self._counts[draft.thread_id] += 1
            count = self._counts[draft.thread_id] if draft.kind is Kind.RECORD else 0
            frame = frame_bytes(draft, self.next_sequence, count, batch, self.previous_hash)
            self.parts.append(frame)
            self.next_sequence, self.previous_hash = self.next_sequence + 1, hash_of(frame)
        return self

    def data(self) -> bytes:
        return b"".join(self.parts)


def file_of(*batches: Sequence[Draft]) -> FileMaker:
    """The first file of a log, which begins with a canary like all files."""
    maker = FileMaker().write(CANARY)
    for batch in batches:
        maker.write(*batch)
    return maker
