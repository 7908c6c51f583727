"""What the commands of `checkpointing journal` share: the directory, and how its books are shown."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from enhanced_checkpointing.cli.configuration import Options, reading, required
from enhanced_checkpointing.cli.screen import listed
from enhanced_checkpointing.journal.inspect import BuriedRecord, Owner, Survey, SurveyedBook, survey
from enhanced_checkpointing.journal.opening import signer_of

__all__ = ["as_object", "directory_of", "letter_as_object", "owner_of", "surveyed"]


def directory_of(options: Options) -> Path:
    """The directory that is meant: the one of the option, whatever else is set, else that of the configuration.

    Raises:
        UsageError: the configuration, which would say so, cannot be read.
    """
    if options.journal_dir is not None:
        return options.journal_dir.expanduser().absolute()
    with reading(options) as read:
        return required(read).journal_dir.absolute()


def surveyed(options: Options) -> Survey:
    """What is in the directory, read without changing it; signatures count where the environment has the key."""
    directory = directory_of(options)
    with reading(options) as read:
        return survey(directory, signer=signer_of(read.config) if read.config is not None else None)


def owner_of(book: SurveyedBook) -> str:
    """Whose a book is, for people."""
    if book.owner is Owner.DEAD:
        return "ended process"
    if book.owner is Owner.UNKNOWN:
        return "being taken over"
    return f"process {listed(map(str, book.process_ids))}" if book.process_ids else "running process"


def as_object(found: Survey) -> dict[str, Any]:
    """A survey in plain JSON types."""
    now = time.time()
    stamps = [book.oldest_at for book in found.books if book.oldest_at is not None]
    return {
        "directory": str(found.directory),
        "exists": found.exists,
        "pending": sum(book.pending for book in found.books),
        "oldest_age_seconds": round(max(0.0, now - min(stamps)), 3) if stamps else None,
        "size_bytes": sum(book.size for book in found.books),
        "dead_letters": sum(len(book.dead_letters) for book in found.books),
        "damages": sum(len(book.faults) for book in found.books),
        "books": [_book(book, now) for book in found.books],
        "quarantined": [
            {"name": file.name, "book": file.book, "size_bytes": file.size, "copied_at": round(file.copied_at, 3)}
            for file in found.quarantined
        ],
        "strays": list(found.strays),
    }


def _book(book: SurveyedBook, now: float) -> dict[str, Any]:
    return {
        "book": book.identity,
        "owner": book.owner.value,
        "process_ids": list(book.process_ids),
        "home": book.home,
        "begun_at": round(book.begun_at, 3),
        "pending": book.pending,
        "threads": len(book.waiting),
        "oldest_age_seconds": None if book.oldest_at is None else round(max(0.0, now - book.oldest_at), 3),
        "size_bytes": book.size,
        "dead_letters": len(book.dead_letters),
        "faults": list(book.faults),
        "damaged_threads": list(book.damaged_threads),
        "files": list(book.files),
    }


def letter_as_object(letter: BuriedRecord, book: SurveyedBook) -> dict[str, Any]:
    """A dead letter in plain JSON types."""
    return {
        "thread_id": letter.thread_id,
        "operation": letter.operation,
        "checkpoint_ns": letter.checkpoint_ns,
        "checkpoint_id": letter.checkpoint_id,
        "error": letter.error,
        "written_at": round(letter.written_at, 3),
        "size_bytes": letter.size,
        "book": book.identity,
        "owner": book.owner.value,
        "process_ids": list(book.process_ids),
    }
