"""A bound on retries as a share of calls, so that an outage does not triple the load on what is left."""

from __future__ import annotations


class RetryBudget:
    """Every call earns a tenth of a retry; at most `most` are saved up. A retry without one saved is not made."""

    def __init__(self, most: float = 10.0, per_call: float = 0.1) -> None:
        self._most = most
        self._per_call = per_call
        self._saved = most

    def earn(self) -> None:
        self._saved = min(self._most, self._saved + self._per_call)

    def spend(self) -> bool:
        """Take one retry from the budget; False if none is left."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
