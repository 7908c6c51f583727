"""The file in which the workers of one journal directory tell each other of their threads: its bytes, and no decisions.

Nothing in it is as long as a thread: of each there are a *stamp*, which changes whenever a worker acknowledges
something of it, and two bits for each worker whose journal holds anything of it. Threads whose hashes meet share these,
so that one of them is refused without need, and none is answered wrongly.

No worker waits for another: a stamp is one aligned word, which is stored as a whole, and all else that a worker stores
belongs to it alone. One that is killed leaves nothing half done, and a machine that crashes leaves no worker alive:
the first one that starts then empties the file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

WORKERS = 63
"""Workers that can be told apart. One more sees what these hold, and accepts nothing itself in an outage."""

NAME = ".threads"
"""Of the file. Hidden, so that an earlier release takes no notice of it."""

_MAGIC = int.from_bytes(b"ECTHREA1")
KEY_SIZE, _WORD, _PAGE = 16, 8, 4096
_START, _KEY_AT = 1, 16
"""The word of the newest start, and the first byte of the key."""
_HOLDS_AT, _NAMES_AT = 64, 1024
_NAME = struct.Struct("16s8s")
_STAMPS = _BITS = 2**18
_STAMPS_AT = _PAGE
_BITS_AT = _STAMPS_AT + _STAMPS * _WORD
SIZE = _BITS_AT + WORKERS * _BITS // 8
"""Bytes: 4 MiB."""

Worker = tuple[str, bytes]
"""The identity of its log, in hexadecimal digits, and a hash of its database."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one thread is told of: the word of its stamp, and its bits among those of any worker."""

    stamp: int
    bits: tuple[int, int]


class ThreadTable:
    """Reads and writes the bytes, `SIZE` of them, wherever those are."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._words = data.cast("Q")
        self.stamps = self._words[_STAMPS_AT // _WORD : _BITS_AT // _WORD]

    # The whole

    @property
    def is_valid(self) -> bool:
        """Whether it was begun, and nothing else was written into it."""
        return self._words[0] == _MAGIC

    def reset(self, key: bytes) -> None:
        """Forget everything."""
        self._words[0] = 0
        self._data[_KEY_AT:SIZE] = bytes(SIZE - _KEY_AT)
        self._data[_KEY_AT : _KEY_AT + KEY_SIZE] = key
        self._words[0] = _MAGIC

    @property
    def newest_start(self) -> int:
        """A number that is another one after each start of a worker."""
        return self._words[_START]

    @newest_start.setter
    def newest_start(self, number: int) -> None:
        self._words[_START] = number

    @property
    def key(self) -> bytes:
        return bytes(self._data[_KEY_AT : _KEY_AT + KEY_SIZE])

    def spot(self, home: bytes, thread_id: str) -> Spot:
        """Where a thread of a database is."""
        name = home + thread_id.encode(errors="surrogatepass")
        number = int.from_bytes(blake2b(name, key=self.key, digest_size=8).digest())
        return Spot(number % _STAMPS, ((number >> 20) % _BITS, (number >> 40) % _BITS))

    def stamp_all(self, stamp: int) -> None:
        """Change the stamps of all threads."""
        self._data[_STAMPS_AT:_BITS_AT] = stamp.to_bytes(_WORD, "little") * _STAMPS

    # Workers

    def workers(self) -> Sequence[tuple[int, Worker]]:
        """All that have a place, with it."""
        raw = bytes(self._data[_NAMES_AT : _NAMES_AT + WORKERS * _NAME.size])
        named = enumerate(_NAME.iter_unpack(raw))
        return [(place, (identity.hex(), home)) for place, (identity, home) in named if any(identity)]

    def name(self, place: int, worker: Worker) -> None:
        """Give a place to a worker, or rename that."""
        at = _NAMES_AT + place * _NAME.size
        self._data[at : at + _NAME.size] = _NAME.pack(bytes.fromhex(worker[0]), worker[1])

    def free(self, place: int) -> None:
        self.name(place, ("", b""))
        self.tell_holding(place, 0)
        at = self._bits_of(place)
        self._data[at : at + _BITS // 8] = bytes(_BITS // 8)

    # What is held

    def holding(self) -> bytes:
        """For each place 0: its journal holds nothing; 1: something; 2: only what is frozen."""
        return bytes(self._data[_HOLDS_AT : _HOLDS_AT + WORKERS])

    def tell_holding(self, place: int, what: int) -> None:
        self._data[_HOLDS_AT + place] = what

    def is_held(self, place: int, spot: Spot) -> bool:
        """Whether the journal of the worker in a place holds a thread of this spot."""
        at = self._bits_of(place)
        return all(self._data[at + bit // 8] & 1 << bit % 8 for bit in spot.bits)

    def set_bit(self, place: int, bit: int, *, held: bool) -> None:
        at = self._bits_of(place) + bit // 8
        if held:
            self._data[at] |= 1 << bit % 8
        else:
            self._data[at] &= ~(1 << bit % 8)

    def _bits_of(self, place: int) -> int:
        return _BITS_AT + place * _BITS // 8
