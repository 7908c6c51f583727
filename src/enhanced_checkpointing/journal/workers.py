"""What one worker knows of the others in its journal directory: whether they may have gone on with a thread, and
whether a journal holds anything of it; and the file in which they tell each other.

The order matters: a thread is told of as held before anything of it is journaled, and as changed before that is
acknowledged; an answer of the primary counts from the moment before it was asked for.

Nothing in the file is as long as a thread: of each there are a *stamp*, which changes whenever a worker acknowledges
something of it, and two bits for each worker whose journal holds anything of it. Threads whose hashes meet share these,
so that one of them is refused without need, and none is answered wrongly. No worker waits for another: a stamp is one
aligned word, which is stored as a whole, and all else that a worker stores belongs to it alone. One that is killed
leaves nothing half done, and a machine that crashes leaves no worker alive: the first one that starts then empties the
file.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from threading import Lock

from enhanced_checkpointing.errors import CheckpointUnavailableError, quoted
from enhanced_checkpointing.journal.disk import Disk, reason

WORKERS = 63
"""Workers that can be told apart. One more sees what these hold, and accepts nothing itself in an outage."""

TABLE_NAME = ".threads"
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
TABLE_SIZE = _BITS_AT + WORKERS * _BITS // 8
"""Bytes: 4 MiB."""

Worker = tuple[str, bytes]
"""The identity of its log, in hexadecimal digits, and a hash of its database."""


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one thread is told of: the word of its stamp, and its bits among those of any worker."""

    stamp: int
    bits: tuple[int, int]


class ThreadTable:
    """Reads and writes the bytes, `TABLE_SIZE` of them, wherever those are."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._words = data.cast("Q")
        self.start = self._words[_START : _START + 1]
        """The word of the newest start, as every call looks at it."""
        self.stamps = self._words[_STAMPS_AT // _WORD : _BITS_AT // _WORD]

    # The whole

    @property
    def is_valid(self) -> bool:
        """Whether it was begun, and nothing else was written into it."""
        return self._words[0] == _MAGIC

    def reset(self, key: bytes) -> None:
        """Forget everything."""
        self._words[0] = 0
        self._data[_KEY_AT:TABLE_SIZE] = bytes(TABLE_SIZE - _KEY_AT)
        self._data[_KEY_AT : _KEY_AT + KEY_SIZE] = key
        self._words[0] = _MAGIC

    @property
    def newest_start(self) -> int:
        """A number that is another one after each start of a worker."""
        return self.start[0]

    @newest_start.setter
    def newest_start(self, number: int) -> None:
        self.start[0] = number

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


REMEMBERED = 50_000
"""Threads of which it is remembered how they were known; those that changed the longest ago are forgotten first."""

SPOTS_REMEMBERED = 20_000
"""Threads whose place in the table is remembered."""

CLOCKS_APART = 60.0
"""Seconds by which the clock that made a thread's id may be ahead of ours."""

_STEP = WORKERS + 1
"""Stamps are nanoseconds in steps of so many, and the number of the worker besides: no two are alike."""

SHARED = (
    "another process uses this CHECKPOINT_JOURNAL_DIR for the same database. In an outage each process answers from "
    "its own memory, so a thread that another one has gone on with is refused there (CheckpointUnavailableError) "
    "instead of being shown as it was before, and while the journal of one process holds anything of a thread, the "
    "others wait for that or refuse it. Send each thread to the same process (sticky sessions) and give each process "
    "a directory of its own, which its next start uses again"
)


class Workers:
    """Made with the journal. `settle` and `leave` run where the disk may block, all else on the event loop."""

    def __init__(
        self,
        disk: Disk,
        home: str | None,
        *,
        takes_over_all: bool = False,
        clock: Callable[[], float] = time.monotonic,
        make_key: Callable[[], str] = lambda: secrets.token_hex(KEY_SIZE // 2),
    ) -> None:
        self._disk = disk
        self._home = blake2b((home or "").encode(errors="backslashreplace"), digest_size=8).digest()
        self._takes_all = takes_over_all or home is None
        self._clock = clock
        self._make_key = make_key
        self._file: int | None = None
        self._table: ThreadTable | None = None
        self._me: int | None = None
        """This worker's place."""
        self._identity = ""
        self._has_entered = False
        self._is_alone = False
        """No other worker was here when this one came, nor has come since, as far as it has looked."""
        self._start, self._key = 0, b""
        self._others_live = False
        self._newest_stamp = 0
        self._known: dict[str, int] = {}
        """For each thread of which this worker knows all that is acknowledged: the stamp at which it did. Without one
    nobody has acknowledged anything since the first of those that are here came."""
        self._held: dict[str, Spot] = {}
        self._coming: set[str] = set()
        """Threads that are being taken over."""
        self._frozen: set[str] = set()
        self._bits: Counter[int] = Counter()
        self._lock = Lock()
        """Of what is held: the disk's thread takes over, the event loop all else."""
        self._spot: Callable[[str], Spot] = _nowhere
        self._has_looked = False
        """Until what ended processes left was looked at, any thread may be among it."""
        self._news: list[str] = []

    # Coming and going

    def settle(self, identity: str | None, alive: Collection[str], taken: Collection[str]) -> None:
        """Take a place, named by the `identity` of one's log; tell that the threads `taken` over are held; free the
        places of ended workers, of which nothing is left. To be called with the lock of the directory.

        `alive` are the identities of the others' logs. Where the file cannot be used, `news` say so.
        """
        others_lived, self._others_live = self._others_live, bool(alive)
        try:
            table = self._opened()
        except OSError as error:
            self._has_looked = True
            if alive and not others_lived:
                self._news.append(
                    f"what the other processes in the journal's directory do cannot be seen ({reason(error)}): while "
                    "they run, nothing is answered from memory in an outage, and nothing is accepted"
                )
            return
        if not table.is_valid or not (self._has_entered or alive):
            table.reset(self._make_key().encode()[:KEY_SIZE])
            table.newest_start = int(self._make_key(), 16)
        self._alone(table)
        living = {place for place, worker in table.workers() if worker[0] in alive}
        if not self._has_entered:
            table.newest_start = int(self._make_key(), 16)
            self._see_start(table)
            if self._has_looked:  # there was another file: what others told in it is lost
                table.stamp_all(self._next_stamp())
            self._has_entered, self._is_alone = True, not alive
            if any(place in living and worker[1] == self._home for place, worker in table.workers()):
                self._news.append(SHARED)
        with self._lock:
            self._coming.update(taken)
            if identity is not None:
                self._take_place(table, identity)
            for thread_id in taken:
                self._hold(thread_id)
        for place, worker in table.workers():
            if place != self._me and place not in living and (self._takes_all or worker[1] == self._home):
                table.free(place)
        self._has_looked = True

    def leave(self) -> None:
        """Give everything back; what the journal still holds stays told of."""
        table, self._table, self._spot = self._table, None, _nowhere
        if table is None or self._file is None:
            return
        with suppress(OSError), self._disk.alone() as alone:
            if self._me is not None and not self._held and self._has_place(table):
                table.free(self._me)
            if alone and not table.workers() and self._disk.is_named(TABLE_NAME, self._file):
                self._disk.remove(TABLE_NAME)
        self._disk.close(self._file)
        self._file = None

    def news(self) -> Sequence[str]:
        """What an operator was not told yet."""
        news, self._news = self._news, []
        return news

    def _opened(self) -> ThreadTable:
        if self._table is not None and self._file is not None and self._disk.is_named(TABLE_NAME, self._file):
            return self._table
        if self._file is not None:  # it was removed
            self._disk.close(self._file)
            self._file = self._table = None
        self._file, data = self._disk.share(TABLE_NAME, TABLE_SIZE)
        table = ThreadTable(data)
        self._has_entered, self._me = False, None
        self._see_file(table)
        self._table = table
        return table

    def _take_place(self, table: ThreadTable, identity: str) -> None:
        if not self._has_place(table):
            taken = {place for place, _ in table.workers()}
            self._me = next((place for place in range(WORKERS) if place not in taken), None)
        if self._me is None:
            return
        is_new = not self._has_place(table)
        table.name(self._me, (identity, self._home))
        self._identity = identity
        if is_new:
            self._bits.clear()
            held, self._held = self._held, {}
            for thread_id in held:
                self._hold(thread_id)

    def _has_place(self, table: ThreadTable) -> bool:
        return (self._me, (self._identity, self._home)) in table.workers()

    def _see_start(self, table: ThreadTable) -> None:
        """Another worker has started, which may have begun the file anew."""
        self._start = table.newest_start
        if table.key != self._key:
            self._see_file(table)
            if self._has_entered:  # what others told before is lost
                table.stamp_all(self._next_stamp())

    def _see_file(self, table: ThreadTable) -> None:
        self._key = table.key
        self._known.clear()
        self._spot = lru_cache(SPOTS_REMEMBERED)(partial(table.spot, self._home))

    # What the journal holds

    def claim(self, thread_id: str, *, grows: bool) -> None:
        """Tell that this worker's journal holds a thread, of which it held nothing before; `grows`: what is to be
        journaled is built upon what this worker knows.

        Raises:
            CheckpointUnavailableError: another worker's journal holds it, or may have gone on with it. It is not held.
        """
        self.hold(thread_id)
        try:
            self.check(thread_id, grows=grows)
            if self._me is None and not (self._table is None or self._alone(self._table)):
                raise CheckpointUnavailableError(
                    f"more than {WORKERS} processes use this CHECKPOINT_JOURNAL_DIR, so that this one cannot tell the "
                    "others of what it would journal. Nothing was stored. Give some of them a directory of their own."
                )
        except CheckpointUnavailableError:
            self.release(thread_id)
            raise

    def hold(self, thread_id: str) -> None:
        with self._lock:
            self._hold(thread_id)

    def release(self, thread_id: str) -> None:
        """The journal holds nothing of a thread any more."""
        with self._lock:
            if thread_id in self._coming or (spot := self._held.pop(thread_id, None)) is None:
                return
            self._frozen.discard(thread_id)
            for bit in spot.bits:
                self._bits[bit] -= 1
                if not self._bits[bit]:
                    del self._bits[bit]
                    self._set_bit(bit, held=False)
            self._tell_holding()

    def freeze(self, thread_id: str) -> None:
        """What is held of a thread is not drained until that is mended."""
        with self._lock:
            self._frozen.add(thread_id)
            self._tell_holding()

    def took_over(self, thread_id: str) -> None:
        """A thread of an ended worker is in the journal now: if no other one holds it, there is nothing newer."""
        with self._lock:
            self._coming.discard(thread_id)
            self._hold(thread_id)
        if not self.held_elsewhere(thread_id):
            self.know(thread_id, self.stamp(thread_id))

    def _hold(self, thread_id: str) -> None:
        if thread_id in self._held:
            return
        spot = self._held[thread_id] = self._spot(thread_id)
        for bit in spot.bits:
            self._bits[bit] += 1
            self._set_bit(bit, held=True)
        self._tell_holding()

    def _set_bit(self, bit: int, *, held: bool) -> None:
        if self._table is not None and self._me is not None:
            self._table.set_bit(self._me, bit, held=held)

    def _tell_holding(self) -> None:
        if self._table is not None and self._me is not None:
            what = 0 if not self._held else 2 if self._held.keys() <= self._frozen else 1
            self._table.tell_holding(self._me, what)

    # What others do

    def held_elsewhere(self, thread_id: str | None, *, frozen: bool = True) -> bool:
        """Whether another worker's journal holds, or may hold, anything of a thread, or for None of any; with `frozen`
        also what is not drained until it is mended."""
        if not self._has_looked:
            return True
        table = self._table
        if table is None or (self._is_alone and table.start[0] == self._start) or self._alone(table):
            return False
        return self._is_held(table, thread_id, frozen=frozen)

    def _is_held(self, table: ThreadTable, thread_id: str | None, *, frozen: bool) -> bool:
        holding = table.holding()
        if holding.count(0) == WORKERS:
            return False
        holders = [
            place for place, what in enumerate(holding) if (what == 1 or (what and frozen)) and place != self._me
        ]
        if not holders:
            return False
        if thread_id is None:
            return any(place in holders and worker[1] == self._home for place, worker in table.workers())
        spot = self._spot(thread_id)
        return any(table.is_held(place, spot) for place in holders)

    def stamp(self, thread_id: str) -> int:
        """To be asked for before the primary is, and given to `know` with its answer."""
        table = self._table
        return table.stamps[self._spot(thread_id).stamp] if table is not None else 0

    def know(self, thread_id: str, stamp: int) -> None:
        """This worker knows what was acknowledged of a thread before it got the `stamp`, or even more."""
        if self.stamp(thread_id) == self._known.get(thread_id, 0):
            return
        self._remember(thread_id, stamp)

    def _remember(self, thread_id: str, stamp: int) -> None:
        self._known.pop(thread_id, None)  # so that it comes last
        self._known[thread_id] = stamp
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]

    def note(self, thread_id: str, *, is_all: bool = False) -> None:
        """This worker is about to acknowledge something of a thread. `is_all`: there is nothing else of it."""
        table = self._table
        if table is None:
            return
        at, stamps = self._spot(thread_id).stamp, table.stamps
        alone = self._is_alone and table.start[0] == self._start
        knew_all = is_all or alone or self._alone(table) or self._known.get(thread_id, 0) == stamps[at]
        stamps[at] = stamp = self._next_stamp()
        if knew_all:
            self._remember(thread_id, stamp)

    def note_changed(self, thread_ids: Collection[str] | None) -> None:
        """This worker has changed threads, or for None any of all, without knowing what they are now."""
        if self._table is None:
            return
        if thread_ids is None:
            self._table.stamp_all(self._next_stamp())
        for thread_id in thread_ids or ():
            self._table.stamps[self._spot(thread_id).stamp] = self._next_stamp()

    def is_current(self, thread_id: str) -> bool:
        """Whether no other worker can have gone on with a thread since this worker knew it."""
        table = self._table
        if table is None:
            return not self._others_live
        return self._alone(table) or self._known.get(thread_id, 0) == table.stamps[self._spot(thread_id).stamp]

    def begins(self, thread_id: str, age: float | None) -> bool:
        """Take a thread for empty that is so many seconds old, or of unknown age; False: another worker may have
        written to it."""
        stamp = self.stamp(thread_id)
        if stamp and not self.is_current(thread_id):
            oldest = 0.0 if age is None else self._clock() - age - CLOCKS_APART
            if stamp >= oldest * 1e9:
                return False
        self.know(thread_id, stamp)
        return True

    def check(self, thread_id: str, *, grows: bool) -> None:
        """See that what this worker knows of a thread may be answered, or what it `grows` be stored.

        Raises:
            CheckpointUnavailableError: another worker's journal holds it, or may have gone on with it.
        """
        if self.held_elsewhere(thread_id):
            raise CheckpointUnavailableError(
                f"another process that shares CHECKPOINT_JOURNAL_DIR has in its journal what it acknowledged of thread "
                f"{quoted(thread_id)}, and this one cannot see it before it is drained"
            )
        if grows and not self.is_current(thread_id):
            raise CheckpointUnavailableError(
                f"another process that shares CHECKPOINT_JOURNAL_DIR may have gone on with thread {quoted(thread_id)} "
                "since this one read it"
            )

    def _alone(self, table: ThreadTable) -> bool:
        if table.newest_start != self._start:
            self._is_alone = False
            self._see_start(table)
        return self._is_alone

    def _next_stamp(self) -> int:
        step = max(int(self._clock() * 1e9) // _STEP, self._newest_stamp // _STEP + 1)
        self._newest_stamp = step * _STEP + (WORKERS if self._me is None else self._me)
        return self._newest_stamp


def _nowhere(thread_id: str) -> Spot:
    """Of a thread while there is no file."""
    return Spot(0, (0, 0))
