"""A LangGraph checkpointer that keeps agents running, and keeps the truth, while the database behind it fails.

manager = await initialize_enhanced_checkpointing()
graph = builder.compile(checkpointer=manager.get_checkpointer())
"""

from enhanced_checkpointing.config import (
    CheckpointerConfig,
    CheckpointerType,
    create_memory_checkpointer,
    create_postgres_checkpointer,
    create_sqlite_checkpointer,
)
from enhanced_checkpointing.errors import (
    CheckpointCorruptionError,
    CheckpointerConfigurationError,
    CheckpointerError,
    CheckpointNotFoundError,
    CheckpointUnavailableError,
    InvalidIdError,
    JournalFullError,
)
from enhanced_checkpointing.manager import (
    EnhancedCheckpointerManager,
    initialize_enhanced_checkpointing,
    integrate_with_memory_manager,
)
from enhanced_checkpointing.settings import (
    CheckpointerSettings,
    get_development_checkpointer_config,
    get_production_checkpointer_config,
    get_testing_checkpointer_config,
)

__all__ = [
    "CheckpointCorruptionError",
    "CheckpointNotFoundError",
    "CheckpointUnavailableError",
    "CheckpointerConfig",
    "CheckpointerConfigurationError",
    "CheckpointerError",
    "CheckpointerSettings",
    "CheckpointerType",
    "EnhancedCheckpointerManager",
    "InvalidIdError",
    "JournalFullError",
    "create_memory_checkpointer",
    "create_postgres_checkpointer",
    "create_sqlite_checkpointer",
    "get_development_checkpointer_config",
    "get_production_checkpointer_config",
    "get_testing_checkpointer_config",
    "initialize_enhanced_checkpointing",
    "integrate_with_memory_manager",
]
