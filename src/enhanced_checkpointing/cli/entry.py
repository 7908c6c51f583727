"""The console script `checkpointing`: says which extra to install where the terminal's packages are missing."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

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

    from enhanced_checkpointing.cli import output  # here, as most of it cannot be imported without them
    from enhanced_checkpointing.cli.app import app

    sys.stdout, sys.stderr = output.steady(sys.stdout), output.steady(sys.stderr)
    sys.exit(output.ended(_run(app)))


def _run(app: typer.Typer) -> int:
    if "--json" in sys.argv[1:]:
        return _run_for_a_script(app)
    try:
        app(prog_name="checkpointing")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _run_for_a_script(app: typer.Typer) -> int:
    """Run a command that is asked for JSON: what is wrong with its options is told in JSON, too."""
    from enhanced_checkpointing.cli.output import print_json

    try:
        return app(prog_name="checkpointing", standalone_mode=False) or 0
    except Exception as error:  # the parser's errors have no public class in common; others are raised again
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        print_json({"status": "unknown", "error": told()})
        return MISSING_PARTS


if __name__ == "__main__":
    main()
