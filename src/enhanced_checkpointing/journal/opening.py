"""Which journal a configuration means, opened."""

from __future__ import annotations

import sys

from enhanced_checkpointing.config import CheckpointerConfig
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.journal.contract import Journal
from enhanced_checkpointing.journal.disk import RealDisk
from enhanced_checkpointing.journal.durable_journal import DurableJournal
from enhanced_checkpointing.journal.filesystems import network_filesystem
from enhanced_checkpointing.journal.memory_journal import MemoryJournal
from enhanced_checkpointing.serialization import SharingSerializer
from enhanced_checkpointing.telemetry.events import Notice, Telemetry


async def open_journal(
    config: CheckpointerConfig, serializer: SharingSerializer, telemetry: Telemetry
) -> Journal | None:
    """The journal of a configuration; None for "off".

    Where the durable one cannot be opened, that ends a start in production, and one that asked for it by name. Any
    other start goes on in memory, and says so.

    Raises:
        CheckpointerConfigurationError: the journal's directory cannot be used.
    """
    _say_what_has_no_effect(config, telemetry)
    if config.journal == "off":
        return None
    if config.journal == "durable":
        try:
            return await _open_durable(config, serializer, telemetry)
        except CheckpointerConfigurationError as error:
            asked_for = config.model_fields_set & {"journal", "journal_dir"}
            if asked_for or config.environment == "production":
                raise
            telemetry.emit(Notice("WARNING", f"{error} Until then the journal is in memory"))
    return MemoryJournal(config.journal_max_bytes)


async def _open_durable(
    config: CheckpointerConfig, serializer: SharingSerializer, telemetry: Telemetry
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
    journal = DurableJournal(
        RealDisk(directory), capacity=config.journal_max_bytes, serializer=serializer, telemetry=telemetry
    )
    await journal.open()
    return journal


def _say_what_has_no_effect(config: CheckpointerConfig, telemetry: Telemetry) -> None:
    if "journal_dir" in config.model_fields_set and config.journal != "durable":
        telemetry.emit(
            Notice("WARNING", f"CHECKPOINT_JOURNAL_DIR has no effect with CHECKPOINT_JOURNAL={config.journal}")
        )
