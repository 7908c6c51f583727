"""What every maker of a document does on its command line: print, or `--write`."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent


def write_or_print(file: Path, content: str) -> None:
    """Bring `content` to its file if `--write` was given, else to standard output."""
    if sys.argv[1:] not in ([], ["--write"]):
        raise SystemExit(f"usage: {sys.argv[0]} [--write]")
    if sys.argv[1:]:
        file.write_text(content, encoding="utf-8")
    else:
        sys.stdout.write(content)
