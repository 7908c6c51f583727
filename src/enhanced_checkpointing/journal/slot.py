"""The lock file of a book: the number of its newest file, and whose it is. Pure.

The file is empty until the first file of the book is begun. Releases before this one wrote no home.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from zlib import crc32

from enhanced_checkpointing.journal.frames import SIGNATURE_SIZE, FileSigner

MOST_FILES = 499_999_999
"""The greatest number of a file that is believed: there are names for as many more."""

_NUMBER = struct.Struct(">4sI")
_HOME = struct.Struct(">4sI")
"""Magic, length of the text that follows."""
_CRC = struct.Struct(">I")
_NUMBER_MAGIC, _HOME_MAGIC, _SIGNED_MAGIC = b"ECJL", b"ECJH", b"ECJM"
_NUMBER_SIZE = _NUMBER.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Slot:
    """What a lock file says.

    `newest` is the number of the newest file; 0: none was begun; None: it is not what was written. `home` tells which
    primary the book is for; None: it does not say. With `home_damaged` nobody can know.
    """

    newest: int | None
    home: str | None = None
    home_damaged: bool = False


def slot_bytes(newest: int, home: str | None, signer: FileSigner | None = None) -> bytes:
    """The bytes of a lock file."""
    number = _checked(_NUMBER.pack(_NUMBER_MAGIC, newest))
    if home is not None:
        text = home.encode(errors="backslashreplace")
        number += _checked(_HOME.pack(_HOME_MAGIC, len(text)) + text)
    return number if signer is None else signer.signed(number + _SIGNED_MAGIC)


def read_slot(data: bytes, signer: FileSigner | None = None) -> Slot:
    """What is in a lock file. Of one that is not signed as it should be, only whose it says it is counts: what it says
    of its files, nobody knows."""
    if len(data) < _NUMBER_SIZE:
        return Slot(newest=0)
    content = data[: -SIGNATURE_SIZE - len(_SIGNED_MAGIC)]
    is_signed = data[len(content) :].startswith(_SIGNED_MAGIC) and len(content) >= _NUMBER_SIZE
    slot = _read(content if is_signed else data)
    if signer is not None and signer.signer.asks and not (is_signed and signer.is_signed(data)):
        return replace(slot, newest=None)
    return slot


def _read(data: bytes) -> Slot:
    number, rest = data[:_NUMBER_SIZE], data[_NUMBER_SIZE:]
    newest = int(_NUMBER.unpack_from(number)[1]) if _is_checked(number) else None
    if newest is not None and newest > MOST_FILES:
        newest = None
    if not rest:
        return Slot(newest)
    body = rest[_HOME.size : -_CRC.size]
    if not _is_checked(rest) or not rest.startswith(_HOME.pack(_HOME_MAGIC, len(body))):
        return Slot(newest, home_damaged=True)
    try:
        return Slot(newest, body.decode())
    except UnicodeDecodeError:
        return Slot(newest, home_damaged=True)


def _checked(part: bytes) -> bytes:
    return part + _CRC.pack(crc32(part))


def _is_checked(part: bytes) -> bool:
    return _CRC.pack(crc32(part[: -_CRC.size])) == part[-_CRC.size :]
