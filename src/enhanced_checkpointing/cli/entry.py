"""The console script `checkpointing`: says which extra to install where the terminal's packages are missing."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

MISSING_PARTS = 2
"""Exit code when something has to be installed or put right first, as for a wrong option."""


def main() -> None:
    """Run the command line; ends with exit code 2 when the extra `cli` is not installed."""
    missing = [name for name in ("typer", "rich", "packaging", "dotenv") if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"checkpointing needs {' and '.join(missing)}, which the library itself does without. Install the extra:\n"
            '    pip install "enhanced-checkpointing[cli]"',
            file=sys.stderr,
        )
        sys.exit(MISSING_PARTS)

    from enhanced_checkpointing.cli.app import app  # here, as it cannot be imported without them

    app(prog_name="checkpointing")


if __name__ == "__main__":
    main()
