"""How long is looked for an example that breaks something: a little with every push, much more at night."""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("TEST_FUZZ_FACTOR", "1"))


def examples(count: int) -> int:
    """So many, times `TEST_FUZZ_FACTOR`."""
    return FACTOR * count
