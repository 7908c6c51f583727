"""The bytes of a log: its files, the control records that say what became of others, and its lock file. Pure.

A file is a header, then one frame after another, each bound to the one before by its hash. Every bit of a file belongs
to something with a checksum, so that no flipped bit goes unnoticed. A frame's head has a checksum of its own, which
covers the thread id: a damaged body does not hide whose it was, or where the next frame is. The lock file names the
newest file of the log and its database; it is empty until the first file is begun. Early releases wrote no database.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from operator import itemgetter
from zlib import crc32

FORMAT = 1
"""The version of this format, in every file and every frame."""
SIGNED_FORMAT = 2
"""The same with a signature behind the header and behind each frame."""

HASH_SIZE = 16
NO_HASH = bytes(HASH_SIZE)
SECTOR = 512
"""What a disk writes as a whole: where a tail has one that is all zeros, it never arrived."""

MOST_SEQUENCE = 2**60
"""No file counts so far: what names more was not written by a journal, and would leave no number for what follows."""
LATEST = 253_402_300_800.0
"""The end of the year 9999, in wall-clock seconds."""

_CRC = struct.Struct(">I")
_FILE_FORMAT = struct.Struct(">4sH")
"""Magic, format: what every release can read of the files of all others."""
_FILE_HEAD = struct.Struct(">I16sdQ16sI")
"""Number, log, created at, first sequence, hash before it, number of predecessors."""
_PREDECESSOR = struct.Struct(">IQ")
"""Number, end sequence."""
_FRAME_HEAD = struct.Struct(">4sBBIQQQQd16s")
"""Magic, format, kind, length of the thread id and of the body, sequence, thread sequence, batch, time, hash before."""
_MASKED = 0x80
"""Set in the kind of a frame whose body is masked."""
_MASK = hashlib.shake_128(b"no sector is empty").digest(SECTOR)
_FILE_MAGIC, _FRAME_MAGIC = b"ECJF", b"ECJR"
_HEAD_SIZE = _FRAME_HEAD.size + _CRC.size
_PREDECESSORS_AT = _FILE_FORMAT.size + _FILE_HEAD.size + 2 * _CRC.size


_SIGNATURE = struct.Struct(">4s16s")
"""Id of the key, MAC (keyed BLAKE2b): other keys may come later."""


class Signer:
    """Signs what is written with a secret, and tells whether what is read was. A signature counts in one place of one
    file of one log. Without a secret nothing is signed, and nothing that is read is asked for a signature.

    What it cannot tell: that all log files, or their end, were replaced by an older copy.
    """

    def __init__(self, secret: str | None) -> None:
        self._key = hashlib.blake2b((secret or "").encode(), digest_size=32, person=b"journal key").digest()
        self._id = hashlib.blake2b(self._key, digest_size=4, person=b"journal key id").digest()
        self.asks = secret is not None

    def at(self, log: str, number: int) -> FileSigner:
        return FileSigner(self, bytes.fromhex(log) + number.to_bytes(4, "big"))

    def signed(self, place: bytes, data: bytes) -> bytes:
        mac = hashlib.blake2b(place, key=self._key, digest_size=16)
        mac.update(data)
        return data + _SIGNATURE.pack(self._id, mac.digest())

    def is_signed(self, place: bytes, data: bytes) -> bool:
        """Whether the end of this is the signature of what is before it."""
        content = data[: -_SIGNATURE.size]
        return not self.asks or hmac.compare_digest(self.signed(place, content), data)


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A signer in one file."""

    signer: Signer
    place: bytes

    def signed(self, data: bytes) -> bytes:
        return self.signer.signed(self.place, data)

    def is_signed(self, data: bytes) -> bool:
        return self.signer.is_signed(self.place, data)

    def takes(self, format_: int) -> bool:
        return format_ == SIGNED_FORMAT or (format_ == FORMAT and not self.signer.asks)


SIGNATURE_SIZE = _SIGNATURE.size


class Kind(IntEnum):
    """What a frame says."""

    RECORD = 1
    """An operation of a thread."""
    APPLIED = 2
    """Ranges of sequences that the primary has."""
    DEAD_LETTER = 3
    """A sequence that the primary refused for good, and its error."""
    REDIRECTED = 4
    """The thread into which what is journaled of a thread goes; empty: into itself again."""
    RETIRED = 5
    """The number of a file whose records are all applied, and which may be gone."""
    SELF_CHECK = 6
    """Nothing: written to see that it can be."""


_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """A file that is still needed; `end` is the sequence after its last record."""

    number: int
    end: int


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The beginning of a file. `predecessors` are the files of the same log that were needed when it was begun."""

    log: bytes
    number: int
    created_at: float
    first_sequence: int
    previous_hash: bytes
    predecessors: tuple[Predecessor, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame before it has its place in a file."""

    kind: Kind
    thread_id: str = ""
    body: bytes = b""
    written_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame in its place; `offset` and `length` are bytes of the file, `hash` is what the next frame must name.

    `thread_sequence` counts the records of one thread in one file, without gaps, from 1. `batch` is the sequence of the
    first frame that was written together with this one.
    """

    draft: Draft
    sequence: int
    thread_sequence: int
    batch: int
    previous_hash: bytes
    hash: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A place of a file that is not what was written. Without a `thread_id` it may be any thread's.

    `missing` counts records that should be in front of it. `length` is that of a frame whose bytes are what was written
    and make no sense: the next one begins behind it.
    """

    offset: int
    what: str
    thread_id: str | None = None
    sequence: int | None = None
    missing: int = 0
    length: int = 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file holds; `end` is where its last frame ends.

    `torn` counts bytes behind it that never arrived as a whole: nothing acknowledged.
    """

    header: FileHeader | None
    frames: Sequence[Frame]
    damages: Sequence[Damage]
    end: int
    torn: int = 0


def file_head(header: FileHeader, signer: FileSigner | None = None) -> bytes:
    """The bytes of a header: its format, its fixed part, the predecessors, each with a checksum."""
    fixed = _FILE_HEAD.pack(
        header.number,
        header.log,
        header.created_at,
        header.first_sequence,
        header.previous_hash,
        len(header.predecessors),
    )
    predecessors = b"".join(_PREDECESSOR.pack(known.number, known.end) for known in header.predecessors)
    format_ = FORMAT if signer is None else SIGNED_FORMAT
    head = b"".join((_checked(_FILE_FORMAT.pack(_FILE_MAGIC, format_)), _checked(fixed), _checked(predecessors)))
    return head if signer is None else signer.signed(head)


def frame_size(thread_id: str, body: bytes, *, signed: bool = False) -> int:
    """Bytes that a frame takes."""
    return _HEAD_SIZE + len(thread_id.encode()) + len(body) + 2 * _CRC.size + (SIGNATURE_SIZE if signed else 0)


def frame_bytes(
    draft: Draft,
    sequence: int,
    thread_sequence: int,
    batch: int,
    previous_hash: bytes,
    signer: FileSigner | None = None,
) -> bytes:
    """The bytes of a frame: head, thread id and body, each with a checksum."""
    thread = draft.thread_id.encode()
    masked = bytes(SECTOR) in draft.body
    head = _FRAME_HEAD.pack(
        _FRAME_MAGIC,
        FORMAT if signer is None else SIGNED_FORMAT,
        draft.kind | (_MASKED if masked else 0),
        len(thread),
        len(draft.body),
        sequence,
        thread_sequence,
        batch,
        draft.written_at,
        previous_hash,
    )
    frame = b"".join((_checked(head), _checked(thread), _checked(_mask(draft.body) if masked else draft.body)))
    return frame if signer is None else signer.signed(frame)


def hash_of(frame: bytes | memoryview) -> bytes:
    """What the next frame says of this one."""
    return hashlib.blake2b(frame, digest_size=HASH_SIZE).digest()


def read_frame(data: bytes, offset: int, signer: FileSigner | None = None) -> Frame | Damage | None:
    """The frame at an offset; what is wrong with it; None where there is no head that can be believed."""
    if not _is_head(data, offset):
        return None
    _, format_, kind, thread_length, body_length, sequence, thread_sequence, batch, written_at, previous = (
        _FRAME_HEAD.unpack_from(data, offset)
    )
    thread_at = offset + _HEAD_SIZE
    body_at = thread_at + thread_length + _CRC.size
    end = body_at + body_length + _CRC.size + (SIGNATURE_SIZE if format_ == SIGNED_FORMAT else 0)
    if not _is_checked(data, thread_at, thread_length):
        return Damage(offset, "the thread of a record is not what was written", None, sequence)
    try:
        thread_id = data[thread_at : thread_at + thread_length].decode()
    except UnicodeDecodeError:
        return Damage(offset, "the thread of a record is no text", None, sequence, length=end - offset)
    if not _is_checked(data, body_at, body_length):
        return Damage(offset, "the body of a record is not what was written", thread_id or None, sequence)
    if not (format_ == FORMAT if signer is None else signer.takes(format_)):
        what = f"a record is of format {format_}"
        if signer is not None and format_ == FORMAT:
            what = "a record is not signed, as CHECKPOINT_JOURNAL_KEY asks for"
        return Damage(offset, what, thread_id or None, sequence, length=end - offset)
    if format_ == SIGNED_FORMAT and signer is not None and not signer.is_signed(data[offset:end]):
        if len(data) < end:
            return Damage(offset, "the signature of a record is not what was written", thread_id or None, sequence)
        what = "a record is not signed with CHECKPOINT_JOURNAL_KEY, or not for this place"
        return Damage(offset, what, thread_id or None, sequence, length=end - offset)
    if max(sequence, thread_sequence) > MOST_SEQUENCE or not abs(written_at) <= LATEST:
        return Damage(offset, "a record has a number or a time that none has", thread_id or None, length=end - offset)
    if kind & ~_MASKED not in _KINDS:
        what = f"a record is of the unknown kind {kind & ~_MASKED}"
        return Damage(offset, what, thread_id or None, sequence, length=end - offset)
    body = data[body_at : body_at + body_length]
    draft = Draft(Kind(kind & ~_MASKED), thread_id, _mask(body) if kind & _MASKED else body, written_at)
    hashed = hash_of(memoryview(data)[offset:end])
    return Frame(draft, sequence, thread_sequence, batch, previous, hashed, offset, end - offset)


def format_of(data: bytes) -> int | None:
    """The format of a file; None where it is not what was written."""
    if not _is_checked(data, 0, _FILE_FORMAT.size) or not data.startswith(_FILE_MAGIC):
        return None
    return int(_FILE_FORMAT.unpack_from(data)[1])


def read_header(data: bytes, signer: FileSigner | None = None) -> tuple[FileHeader, int] | None:
    """The header of a file and its length; None where it is not what was written."""
    fixed_at = _FILE_FORMAT.size + _CRC.size
    format_ = format_of(data) or 0
    if not (format_ == FORMAT if signer is None else signer.takes(format_)) or not _is_checked(
        data, fixed_at, _FILE_HEAD.size
    ):
        return None
    number, log, created_at, first, previous, count = _FILE_HEAD.unpack_from(data, fixed_at)
    size = count * _PREDECESSOR.size
    if not _is_checked(data, _PREDECESSORS_AT, size):
        return None
    listed = _PREDECESSOR.iter_unpack(data[_PREDECESSORS_AT : _PREDECESSORS_AT + size])
    header = FileHeader(log, number, created_at, first, previous, tuple(Predecessor(*known) for known in listed))
    if max([first, *(known.end for known in header.predecessors)]) > MOST_SEQUENCE:
        return None
    length = _PREDECESSORS_AT + size + _CRC.size
    if format_ == SIGNED_FORMAT and signer is not None:
        length += SIGNATURE_SIZE
        if not signer.is_signed(data[:length]):
            return None
    return header, length


def scan(data: bytes, signer: FileSigner | None = None) -> Scan:
    """Read a whole file: its frames in their order, and all that is wrong with it. Nothing is passed over silently."""
    found = read_header(data, signer)
    header, offset = found if found is not None else (None, 0)
    frames: list[Frame] = []
    damages: list[Damage] = []
    torn = 0
    last_batch: int | None = None
    while offset < len(data):
        read = read_frame(data, offset, signer)
        if isinstance(read, Frame):
            frames.append(read)
            offset += read.length
            continue
        if read is not None and read.length:
            damages.append(read)
            offset += read.length
            continue
        if offset and not any(memoryview(data)[offset:]):
            break  # blocks that were set aside and not used
        # A head that can be believed tells where its frame ends, and nothing within that is another one.
        size = _size_of_frame(data, offset) if read is not None else 1
        following = _next_head(data, offset + (size if offset + size <= len(data) else 1))
        if last_batch is None and following is not None:
            last_batch = _last_batch(data)
        if _never_arrived(data, offset, following, _next_sequence(header, frames), last_batch):
            torn = len(data) - offset
            break
        what = "the head of a record is not what was written" if offset else "its header is not what was written"
        damages.append(read if read is not None else Damage(offset, what))
        offset = len(data) if following is None else following
    return Scan(header, frames, [*damages, *_broken_links(header, frames, damages)], end=offset, torn=torn)


def _checked(part: bytes) -> bytes:
    return part + _CRC.pack(crc32(part))


def _is_checked(data: bytes, offset: int, size: int) -> bool:
    end = offset + size
    return len(data) >= end + _CRC.size and crc32(memoryview(data)[offset:end]) == _CRC.unpack_from(data, end)[0]


def _is_head(data: bytes, offset: int) -> bool:
    return data.startswith(_FRAME_MAGIC, offset) and _is_checked(data, offset, _FRAME_HEAD.size)


def _mask(body: bytes) -> bytes:
    """A body without empty sectors, and back: an empty sector of a file is one that never arrived."""
    mask = (_MASK * (len(body) // SECTOR + 1))[: len(body)]
    return (int.from_bytes(body, "little") ^ int.from_bytes(mask, "little")).to_bytes(len(body), "little")


def _next_sequence(header: FileHeader | None, frames: Sequence[Frame]) -> int | None:
    if frames:
        return frames[-1].sequence + 1
    return header.first_sequence if header is not None else None


def _last_batch(data: bytes) -> int:
    """The batch of the last head in a file in which there is one."""
    last = data.rfind(_FRAME_MAGIC)
    while not _is_head(data, last):
        last = data.rfind(_FRAME_MAGIC, 0, last + len(_FRAME_MAGIC) - 1)
    *_, batch, _, _ = _FRAME_HEAD.unpack_from(data, last)
    return int(batch)


def _never_arrived(
    data: bytes, offset: int, following: int | None, sequence: int | None, last_batch: int | None
) -> bool:
    """Whether what is at the end of a file was never written as a whole: it is cut short, or has an empty sector.

    Sectors arrive in any order, so that later frames of the same write may be whole. What lies in front of a later
    write did arrive, as does what is as long as its head says and has no empty sector: its damage came later.
    """
    if following is None:
        size = _size_of_frame(data, offset) if offset else _size_of_header(data)
        return len(data) < offset + size or _has_empty_sector(data, offset, len(data))
    assert last_batch is not None  # as there is a head that follows
    return sequence is not None and last_batch <= sequence and _has_empty_sector(data, offset, following)


def _has_empty_sector(data: bytes, start: int, end: int) -> bool:
    ends = [*range(-(-(start + 1) // SECTOR) * SECTOR, end, SECTOR), end]
    parts = zip([start, *ends], ends, strict=False)
    # The last bytes of a checksum may be zero by chance.
    return any(not any(data[begin:stop]) for begin, stop in parts if begin == start or stop - begin >= _CRC.size)


def _size_of_frame(data: bytes, offset: int) -> int:
    """As much as a frame takes, as far as its head can be believed."""
    if not _is_head(data, offset):
        return _HEAD_SIZE
    _, format_, _, thread_length, body_length, *_ = _FRAME_HEAD.unpack_from(data, offset)
    signature = SIGNATURE_SIZE if format_ == SIGNED_FORMAT else 0
    return _HEAD_SIZE + int(thread_length) + int(body_length) + 2 * _CRC.size + signature


def _size_of_header(data: bytes) -> int:
    fixed_at = _FILE_FORMAT.size + _CRC.size
    if not _is_checked(data, fixed_at, _FILE_HEAD.size):
        return _PREDECESSORS_AT
    signature = SIGNATURE_SIZE if format_of(data) == SIGNED_FORMAT else 0
    count = int(_FILE_HEAD.unpack_from(data, fixed_at)[-1])
    return _PREDECESSORS_AT + count * _PREDECESSOR.size + _CRC.size + signature


def _next_head(data: bytes, offset: int) -> int | None:
    """Where the next head of a frame begins that can be believed."""
    while (offset := data.find(_FRAME_MAGIC, offset)) >= 0:
        if _is_head(data, offset):
            return offset
        offset += 1
    return None


def _broken_links(header: FileHeader | None, frames: Sequence[Frame], damages: Sequence[Damage]) -> Iterator[Damage]:
    """Where records are missing between those that are there, or are not those that their successors name."""
    known = {damage.sequence for damage in damages if damage.sequence is not None}
    sequence = header.first_sequence if header is not None else None
    previous = header.previous_hash if header is not None else None
    for frame in frames:
        if sequence is not None and frame.sequence < sequence:
            yield Damage(frame.offset, f"record {frame.sequence} comes after record {sequence - 1}")
        elif sequence is not None and not known.issuperset(range(sequence, frame.sequence)):
            missing = frame.sequence - sequence
            yield Damage(frame.offset, f"records {sequence} to {frame.sequence - 1} are missing", missing=missing)
        elif sequence == frame.sequence and frame.previous_hash != previous:
            yield Damage(frame.offset, f"record {frame.sequence} does not follow from the one before it")
        sequence, previous = frame.sequence + 1, frame.hash


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


def applied_record(sequences: Iterable[int]) -> Draft:
    """The primary has these records."""
    return applied_ranges_record(Sequences((sequence, sequence + 1) for sequence in sequences))


def applied_ranges_record(sequences: Sequences) -> Draft:
    return Draft(Kind.APPLIED, body=b"".join(_RANGE.pack(*part) for part in sequences.ranges))


def applied_in(draft: Draft) -> Sequence[Range]:
    return list(_RANGE.iter_unpack(draft.body))


def dead_letter_record(sequence: int, error: str) -> Draft:
    """The primary refused this record for good."""
    return Draft(Kind.DEAD_LETTER, body=_SEQUENCE.pack(sequence) + error.encode(errors="backslashreplace"))


def dead_letter_in(draft: Draft) -> tuple[int, str]:
    return _SEQUENCE.unpack_from(draft.body)[0], draft.body[_SEQUENCE.size :].decode()


def redirection_record(thread_id: str, target: str) -> Draft:
    """What is journaled of a thread goes into another one."""
    return Draft(Kind.REDIRECTED, thread_id, target.encode())


def redirection_in(draft: Draft) -> tuple[str, str]:
    return draft.thread_id, draft.body.decode()


def retirement_record(number: int) -> Draft:
    """This file is not needed any more."""
    return Draft(Kind.RETIRED, body=_NUMBER.pack(number))


def retired_in(draft: Draft) -> int:
    return int(_NUMBER.unpack(draft.body)[0])


def check_control_record(draft: Draft, sequence: int) -> None:
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
    elif draft.kind is Kind.DEAD_LETTER:
        refused, _ = dead_letter_in(draft)
        if refused >= sequence:
            raise ValueError("a record that is not before it")
    elif draft.kind is Kind.REDIRECTED:
        redirection_in(draft)
    elif draft.kind is Kind.RETIRED:
        retired_in(draft)


MOST_FILES = 499_999_999
"""The greatest number of a file that is believed: there are names for as many more."""

_LOCK_NUMBER = struct.Struct(">4sI")
_HOME = struct.Struct(">4sI")
"""Magic, length of the text that follows."""
_NUMBER_MAGIC, _HOME_MAGIC, _SIGNED_MAGIC = b"ECJL", b"ECJH", b"ECJM"
_NUMBER_SIZE = _LOCK_NUMBER.size + _CRC.size


@dataclass(frozen=True, slots=True)
class LockFile:
    """What a lock file says.

    `newest` is the number of the newest file; 0: none was begun; None: it is not what was written. `home` tells which
    primary the log is for; None: it does not say. With `home_damaged` nobody can know.
    """

    newest: int | None
    home: str | None = None
    home_damaged: bool = False


def lock_file_bytes(newest: int, home: str | None, signer: FileSigner | None = None) -> bytes:
    """The bytes of a lock file."""
    number = _checked(_LOCK_NUMBER.pack(_NUMBER_MAGIC, newest))
    if home is not None:
        text = home.encode(errors="backslashreplace")
        number += _checked(_HOME.pack(_HOME_MAGIC, len(text)) + text)
    return number if signer is None else signer.signed(number + _SIGNED_MAGIC)


def read_lock_file(data: bytes, signer: FileSigner | None = None) -> LockFile:
    """What is in a lock file. Of one that is not signed as it should be, only whose it says it is counts: what it says
    of its files, nobody knows."""
    if len(data) < _NUMBER_SIZE:
        return LockFile(newest=0)
    content = data[: -SIGNATURE_SIZE - len(_SIGNED_MAGIC)]
    is_signed = data[len(content) :].startswith(_SIGNED_MAGIC) and len(content) >= _NUMBER_SIZE
    found = _read_unsigned(content if is_signed else data)
    if signer is not None and signer.signer.asks and not (is_signed and signer.is_signed(data)):
        return replace(found, newest=None)
    return found


def _read_unsigned(data: bytes) -> LockFile:
    number, rest = data[:_NUMBER_SIZE], data[_NUMBER_SIZE:]
    newest = int(_LOCK_NUMBER.unpack_from(number)[1]) if _is_checked(number, 0, _LOCK_NUMBER.size) else None
    if newest is not None and newest > MOST_FILES:
        newest = None
    if not rest:
        return LockFile(newest)
    body = rest[_HOME.size : -_CRC.size]
    if not _is_checked(rest, 0, max(0, len(rest) - _CRC.size)) or not rest.startswith(
        _HOME.pack(_HOME_MAGIC, len(body))
    ):
        return LockFile(newest, home_damaged=True)
    try:
        return LockFile(newest, body.decode())
    except UnicodeDecodeError:
        return LockFile(newest, home_damaged=True)
