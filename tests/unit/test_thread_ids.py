"""What the age of a thread is, told by its id alone."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base.id import uuid6

from enhanced_checkpointing.identifiers import created_at

VARIANT = 0b10 << 62


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**12 - 1), st.integers(0, 2**62 - 1))
def test_uuid7_tells_its_milliseconds(milliseconds: int, random_a: int, random_b: int) -> None:
    thread_id = uuid.UUID(int=milliseconds << 80 | 7 << 76 | random_a << 64 | VARIANT | random_b)
    assert created_at(str(thread_id)) == milliseconds / 1000


def test_uuid6_tells_the_time_at_which_it_was_made() -> None:
    before = time.time()
    thread_id = str(uuid6())
    made_at = created_at(thread_id)
    assert made_at is not None
    assert before - 0.01 <= made_at <= time.time() + 0.01


def test_example_of_rfc_9562_for_version_6_is_its_time() -> None:
    assert created_at("1EC9414C-232A-6B00-B3C8-9F6BDECED846") == pytest.approx(1645557742.0)


def test_example_of_rfc_9562_for_version_7_is_its_time() -> None:
    assert created_at("017F22E2-79B0-7CC3-98C4-DC0C0C07398F") == 1645557742.0


@pytest.mark.parametrize(
    "thread_id",
    [
        "",
        "user-1",
        "69102de4-c845-4a44-b96a-794e3d0eaa3a",
        "c26f5932-e541-11f1-9ba2-02fc00000001",
        str(uuid.UUID(int=0)),
    ],
)
def test_other_ids_tell_nothing(thread_id: str) -> None:
    assert created_at(thread_id) is None
