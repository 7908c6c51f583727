"""Which journal a configuration means, opened."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.api import Journal
from enhanced_checkpointing.journal.disk import RealDisk, memory_filesystem, network_filesystem, reason
from enhanced_checkpointing.journal.durable import DurableJournal
from enhanced_checkpointing.journal.format import Signer
from enhanced_checkpointing.journal.memory import MemoryJournal
from enhanced_checkpointing.journal.recovery import logs_in, take_over_log
from enhanced_checkpointing.observability.events import Notice, Telemetry
from enhanced_checkpointing.resilience.cooperative import in_thread_of_its_own
from enhanced_checkpointing.serialization import SharingSerializer


async def open_journal(
    config: CheckpointerConfig, serializer: SharingSerializer, telemetry: Telemetry, *, home: str
) -> Journal | None:
    """The journal of a configuration; None for "off". `home` tells for which primary it is.

    Where the durable one cannot be opened, that ends a start in production, and one that asked for it by name. Any
    other start goes on in memory, and says so.

    Raises:
        CheckpointerConfigurationError: the journal's directory cannot be used.
    """
    _say_what_has_no_effect(config, telemetry)
    if config.journal != "durable" and sys.platform != "win32":
        await _tell_of_backlogs(config, telemetry)
    if config.journal == "off":
        return None
    if config.journal == "durable":
        try:
            return await _open_durable(config, serializer, telemetry, home)
        except CheckpointerConfigurationError as error:
            asked_for = config.model_fields_set & {"journal", "journal_dir"}
            if asked_for or config.environment == "production":
                raise
            telemetry.emit(Notice("WARNING", f"{error} Until then the journal is in memory"))
    return MemoryJournal(config.journal_max_bytes)


async def _open_durable(
    config: CheckpointerConfig, serializer: SharingSerializer, telemetry: Telemetry, home: str
) -> DurableJournal:
    if sys.platform == "win32":
        raise CheckpointerConfigurationError(
            "The durable journal locks its files by flock, which Windows does not have. Nothing was stored. Set "
            "CHECKPOINT_JOURNAL=memory to accept that what is acknowledged in an outage lives in this process only."
        )
    directory = config.journal_dir.absolute()
    if (kind := network_filesystem(directory)) is not None:
        raise CheckpointerConfigurationError(
            f"CHECKPOINT_JOURNAL_DIR is on a network file system ({kind}), where a lock may not keep others out and a "
            "sync may not be one. Nothing was stored. Set it to a directory on a local disk."
        )
    if (kind := memory_filesystem(directory)) is not None:
        telemetry.emit(
            Notice(
                "WARNING",
                f"CHECKPOINT_JOURNAL_DIR is in memory ({kind}): what is acknowledged in an outage survives this "
                "process, but not the machine. Set it to a directory on a disk",
            )
        )
    journal = DurableJournal(
        RealDisk(directory),
        capacity=config.journal_max_bytes,
        serializer=serializer,
        telemetry=telemetry,
        home=home,
        takes_over_all=config.journal_adopt == "all",
        signer=signer_of(config),
    )
    await journal.open()
    return journal


def signer_of(config: CheckpointerConfig) -> Signer | None:
    """What signs the journal of a configuration; None: nothing does."""
    return Signer(config.journal_key.get_secret_value()) if config.journal_key is not None else None


def _say_what_has_no_effect(config: CheckpointerConfig, telemetry: Telemetry) -> None:
    if "journal_dir" in config.model_fields_set and config.journal != "durable":
        telemetry.emit(
            Notice("WARNING", f"CHECKPOINT_JOURNAL_DIR has no effect with CHECKPOINT_JOURNAL={config.journal}")
        )


async def _tell_of_backlogs(config: CheckpointerConfig, telemetry: Telemetry) -> None:
    """Say what ended processes left, which a start without the durable journal does not drain."""
    directory = config.journal_dir.absolute()
    try:
        count = await in_thread_of_its_own(lambda: _backlog_in(directory), name="look for backlogs")
    except OSError as error:
        what = f"whether ended processes left a backlog in the journal's directory cannot be told ({reason(error)})"
        telemetry.emit(Notice("WARNING", what))
        return
    if count:
        telemetry.emit(
            Notice(
                "WARNING",
                f"{count} operations that ended processes acknowledged wait in {directory}. They are not in the "
                f"primary, and are not drained with CHECKPOINT_JOURNAL={config.journal}: start once with "
                "CHECKPOINT_JOURNAL=durable",
            )
        )


def _backlog_in(directory: Path) -> int:
    """How many records ended processes left; nothing is changed."""
    if not directory.is_dir():
        return 0
    disk, count = RealDisk(directory), 0
    for identity in logs_in(disk.names()):
        found = take_over_log(disk, identity, time.time, is_ours=lambda home: False, signer=Signer(None))
        if found is not None:
            count += len(found.records)
            found.log.release()
    return count
