"""The options that many commands have, said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DatabaseUrl", "EnvFile", "Environment", "JournalDir", "Json", "Sqlite"]

DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="PostgreSQL as the primary, instead of what the environment says.", show_default=False),
]
Sqlite = Annotated[Path | None, typer.Option(help="This SQLite file as the primary, instead.", show_default=False)]
JournalDir = Annotated[Path | None, typer.Option(help="Directory of the journal, instead.", show_default=False)]
Environment = Annotated[
    str | None, typer.Option(help="Profile: development, testing or production.", show_default=False)
]
EnvFile = Annotated[
    Path | None,
    typer.Option(help="Take variables that the environment does not set from this file.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
