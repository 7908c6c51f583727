"""Writing only upon the heads that are expected, as statements of the same transaction. Pure: no I/O."""

from __future__ import annotations

from psycopg import Error

from enhanced_checkpointing.backends.contract import Heads
from enhanced_checkpointing.backends.postgres.arrays import text_array
from enhanced_checkpointing.backends.postgres.wire import Statement

MOVED = "another process has written to this thread since"
"""What the server says, and logs, when a head is not one of those expected."""

# Two processes that drain the same thread at once must each see what the other has written. A statement sees what was
# committed before it began, so that the lock and the look at the heads cannot be one.
LOCK_THREAD = "SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))"

# An error is what keeps the statements after it from being done. The text is made of rows, lest it be cast beforehand.
CHECK_HEADS = f"""
SELECT (CASE WHEN bool_and(fits) THEN '0' ELSE '{MOVED}' END)::integer
FROM (
    SELECT bool_or(head IS NOT DISTINCT FROM (
        SELECT max(checkpoint_id) FROM checkpoints
        WHERE thread_id = $1::text AND checkpoint_ns = namespace
    )) AS fits
    FROM unnest($2::text[], $3::text[]) AS expected (namespace, head)
    GROUP BY namespace
) AS namespaces
"""


def upon_heads(thread_id: str, heads: Heads) -> list[Statement]:
    """What is to come before statements that are done only if each namespace's newest checkpoint is an expected one."""
    thread = thread_id.encode()
    expected = [(namespace.encode(), head) for namespace, known in heads.items() for head in known]
    namespaces = text_array([namespace for namespace, _ in expected])
    found = text_array([None if head is None else head.encode() for _, head in expected])
    return [(LOCK_THREAD, [thread]), (CHECK_HEADS, [thread, namespaces, found])]


def says_moved(error: Error) -> bool:
    """Whether this is the error of a head that is not one of those expected."""
    return MOVED in (error.diag.message_primary or "")
