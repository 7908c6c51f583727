"""Retries are a share of calls, and some that were saved up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from enhanced_checkpointing.resilience.guard import RetryBudget


def test_saved_retries_can_be_spent_and_then_no_more() -> None:
    budget = RetryBudget(most=3.0)
    assert [budget.spend() for _ in range(5)] == [True, True, True, False, False]


def test_ten_calls_earn_one_retry() -> None:
    budget = RetryBudget(most=1.0, per_call=0.125)
    assert budget.spend()
    for _ in range(7):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()


def test_no_more_is_saved_than_the_most() -> None:
    budget = RetryBudget(most=2.0, per_call=0.5)
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_a_tenth_of_calls_and_the_savings(steps: list[bool]) -> None:
    budget, calls, retries = RetryBudget(), 0, 0
    for is_call in steps:
        if is_call:
            calls += 1
            budget.earn()
        else:
            retries += budget.spend()
        assert retries <= 10 + calls * 0.1 + 1e-9
