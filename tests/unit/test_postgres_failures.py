"""What every error of PostgreSQL, psycopg and its pool means for the data."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from enhanced_checkpointing.backends.postgres.failures import LostSessionError, classify_postgres
from enhanced_checkpointing.errors import CheckpointerConfigurationError
from enhanced_checkpointing.resilience.failures import FailureKind

TRANSIENT, UNKNOWN, OUTAGE = FailureKind.TRANSIENT, FailureKind.UNKNOWN, FailureKind.OUTAGE
CONFIGURATION, DATA, CORRUPTION = FailureKind.CONFIGURATION, FailureKind.DATA, FailureKind.CORRUPTION

BY_CODE: list[tuple[type[psycopg.Error], FailureKind]] = [
    (errors.SerializationFailure, TRANSIENT),
    (errors.DeadlockDetected, TRANSIENT),
    (errors.LockNotAvailable, TRANSIENT),
    (errors.QueryCanceled, TRANSIENT),
    (errors.InFailedSqlTransaction, TRANSIENT),
    (errors.IdleInTransactionSessionTimeout, TRANSIENT),
    (errors.IdleSessionTimeout, TRANSIENT),
    (errors.AdminShutdown, TRANSIENT),
    (errors.CrashShutdown, UNKNOWN),
    (errors.ConnectionFailure, UNKNOWN),
    (errors.ConnectionDoesNotExist, UNKNOWN),
    (errors.ProtocolViolation, UNKNOWN),
    (errors.TransactionResolutionUnknown, UNKNOWN),
    (errors.OperatorIntervention, UNKNOWN),
    (errors.InternalError_, UNKNOWN),
    (errors.ReadOnlySqlTransaction, OUTAGE),
    (errors.CannotConnectNow, OUTAGE),
    (errors.TooManyConnections, OUTAGE),
    (errors.DiskFull, OUTAGE),
    (errors.OutOfMemory, OUTAGE),
    (errors.InsufficientResources, OUTAGE),
    (errors.IoError, OUTAGE),
    (errors.SystemError, OUTAGE),
    (errors.InvalidPassword, CONFIGURATION),
    (errors.InvalidAuthorizationSpecification, CONFIGURATION),
    (errors.InvalidCatalogName, CONFIGURATION),
    (errors.InvalidSchemaName, CONFIGURATION),
    (errors.UndefinedTable, CONFIGURATION),
    (errors.UndefinedColumn, CONFIGURATION),
    (errors.InsufficientPrivilege, CONFIGURATION),
    (errors.DatabaseDropped, CONFIGURATION),
    (errors.DuplicatePreparedStatement, CONFIGURATION),
    (errors.InvalidSqlStatementName, CONFIGURATION),
    (errors.UniqueViolation, DATA),
    (errors.NotNullViolation, DATA),
    (errors.StringDataRightTruncation, DATA),
    (errors.UntranslatableCharacter, DATA),
    (errors.CharacterNotInRepertoire, DATA),
    (errors.ProgramLimitExceeded, DATA),
    (errors.StatementTooComplex, DATA),
    (errors.ForeignKeyViolation, DATA),
    (errors.RaiseException, DATA),
    (errors.StatementCompletionUnknown, UNKNOWN),
    (errors.TransactionRollback, TRANSIENT),
    (errors.NoActiveSqlTransaction, TRANSIENT),
    (errors.ObjectInUse, TRANSIENT),
    (errors.ObjectNotInPrerequisiteState, CONFIGURATION),
    (errors.InvalidColumnReference, CONFIGURATION),
    (errors.UndefinedFunction, CONFIGURATION),
    (errors.DatatypeMismatch, CONFIGURATION),
    (errors.SyntaxError, CONFIGURATION),
    (errors.FeatureNotSupported, CONFIGURATION),
    (errors.DataCorrupted, CORRUPTION),
    (errors.IndexCorrupted, CORRUPTION),
]


@pytest.mark.parametrize(("error_type", "kind"), BY_CODE, ids=lambda item: getattr(item, "__name__", None))
def test_server_error_is_classified_by_its_code(error_type: type[psycopg.Error], kind: FailureKind) -> None:
    error = error_type("what the server said")
    failure = classify_postgres(error)
    assert (failure.kind, failure.error, failure.answered) == (kind, error, True)


@pytest.mark.parametrize("error_type", [item for item, kind in BY_CODE if kind is CONFIGURATION])
def test_fault_that_waiting_does_not_mend_comes_with_what_to_do(error_type: type[psycopg.Error]) -> None:
    assert len(classify_postgres(error_type("denied")).fix) > 20


@pytest.mark.parametrize("error_type", [item for item, kind in BY_CODE if kind is not CONFIGURATION])
def test_other_failures_promise_no_fix(error_type: type[psycopg.Error]) -> None:
    assert classify_postgres(error_type("failed")).fix == ""


@pytest.mark.parametrize(
    ("error_type", "word"),
    [
        (errors.InvalidPassword, "password"),
        (errors.InvalidCatalogName, "database"),
        (errors.InvalidSchemaName, "CHECKPOINT_POSTGRES_SCHEMA"),
        (errors.UndefinedTable, "CHECKPOINT_AUTO_SETUP"),
        (errors.UndefinedColumn, "CHECKPOINT_AUTO_SETUP"),
        (errors.InsufficientPrivilege, "Grant"),
        (errors.DuplicatePreparedStatement, "CHECKPOINT_POSTGRES_PREPARE_THRESHOLD=off"),
        (errors.InvalidSqlStatementName, "CHECKPOINT_POSTGRES_PREPARE_THRESHOLD=off"),
        (errors.DatabaseDropped, "database again"),
        (errors.InvalidColumnReference, "primary keys"),
        (errors.ObjectNotInPrerequisiteState, "primary keys"),
    ],
)
def test_fix_fits_the_fault(error_type: type[psycopg.Error], word: str) -> None:
    assert word in classify_postgres(error_type("denied")).fix


def test_prepared_statement_that_a_changed_table_has_outdated_is_tried_again() -> None:
    failure = classify_postgres(errors.FeatureNotSupported("cached plan must not change result type"))
    assert (failure.kind, failure.fix, failure.answered) == (TRANSIENT, "", True)


def test_no_fault_of_the_tables_is_a_fault_of_the_data() -> None:
    """Statements are always the same, so what the server says of one it says of all, and of every thread."""
    known = [kind for kind in vars(errors).values() if isinstance(getattr(kind, "sqlstate", None), str)]
    of_tables = [kind for kind in known if kind.sqlstate[:2] in ("0A", "25", "42", "55")]
    assert len(of_tables) > 30
    assert DATA not in {classify_postgres(kind("said")).kind for kind in of_tables}


def test_every_code_that_psycopg_knows_has_a_kind() -> None:
    known = [kind for kind in vars(errors).values() if isinstance(kind, type) and getattr(kind, "sqlstate", None)]
    assert len(known) > 200
    for error_type in known:
        failure = classify_postgres(error_type("said"))
        assert failure.answered
        assert (failure.kind is CONFIGURATION) == bool(failure.fix)


AT = 'connection to server at "10.0.0.7", port 5432 failed: '

CONNECT_TEXTS = [
    (f"connection failed: {AT}Connection refused\n\tIs the server running on that host?", OUTAGE, False),
    (f"connection failed: {AT}No route to host", OUTAGE, False),
    (f"connection failed: {AT}timeout expired", OUTAGE, False),
    (f"connection failed: {AT}server closed the connection unexpectedly", OUTAGE, False),
    (f"connection failed: {AT}FATAL:  the database system is starting up", OUTAGE, True),
    (f"connection failed: {AT}FATAL:  the database system is shutting down", OUTAGE, True),
    (f"connection failed: {AT}FATAL:  sorry, too many clients already", OUTAGE, True),
    (f"connection failed: {AT}FATAL:  remaining connection slots are reserved for superusers", OUTAGE, True),
    (f'connection failed: {AT}FATAL:  password authentication failed for user "ada"', CONFIGURATION, True),
    (f"connection failed: {AT}fe_sendauth: no password supplied", CONFIGURATION, True),
    (f'connection failed: {AT}FATAL:  no pg_hba.conf entry for host "10.0.0.9"', CONFIGURATION, True),
    (f'connection failed: {AT}FATAL:  database "app" does not exist', CONFIGURATION, True),
    (f'connection failed: {AT}FATAL:  role "ada" does not exist', CONFIGURATION, True),
    (f'connection failed: {AT}FATAL:  role "ada" is not permitted to log in', CONFIGURATION, True),
    (f"connection failed: {AT}server does not support SSL, but SSL was required", CONFIGURATION, True),
    (f"connection failed: {AT}SSL error: certificate verify failed", CONFIGURATION, True),
    ("failed to resolve host 'db': [Errno -2] Name or service not known", OUTAGE, False),
    ("the connection is lost", UNKNOWN, False),
    ("consuming input failed: server closed the connection unexpectedly", UNKNOWN, False),
    ("sending query and params failed: another command is already in progress", UNKNOWN, False),
]


def test_connect_that_took_too_long_may_have_met_an_event_loop_that_stood_still() -> None:
    """Nothing was applied, and it is not for this error alone that a server is taken for dead."""
    failure = classify_postgres(psycopg.errors.ConnectionTimeout("connection timeout expired"))
    assert (failure.kind, failure.answered) == (FailureKind.TRANSIENT, False)


@pytest.mark.parametrize(("text", "kind", "answered"), CONNECT_TEXTS)
def test_error_without_a_code_is_classified_by_its_text(text: str, kind: FailureKind, answered: bool) -> None:
    failure = classify_postgres(psycopg.OperationalError(text))
    assert (failure.kind, failure.answered) == (kind, answered)
    assert bool(failure.fix) is (kind is CONFIGURATION)


def test_one_of_several_hosts_that_refused_connections_may_come_back() -> None:
    text = (
        f'connection failed: {AT}FATAL:  database "app" does not exist\nMultiple connection attempts failed.\n'
        f"- host: 'other': connection failed: {AT}Connection refused"
    )
    assert classify_postgres(psycopg.OperationalError(text)).kind is OUTAGE


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=127.0.0.1 port=1",
        "host=127.0.0.1,127.0.0.1 port=1,2",
        "host=/there/is/no/such/folder",
        "host=no-such-host.invalid connect_timeout=2",
    ],
)
async def test_server_that_is_really_not_there_is_an_outage_without_an_answer(conninfo: str) -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        await psycopg.AsyncConnection.connect(conninfo)
    failure = classify_postgres(caught.value)
    assert (failure.kind, failure.answered) == (OUTAGE, False)


@pytest.mark.parametrize(
    ("error", "kind", "answered"),
    [
        (PoolTimeout("no connection after 5 s"), FailureKind.SATURATED, False),
        (TooManyRequests("queue full"), FailureKind.SATURATED, False),
        (PoolClosed("closed"), TRANSIENT, False),
        (LostSessionError("may still write"), TRANSIENT, False),
        (psycopg.InterfaceError("the connection is closed"), UNKNOWN, False),
        (psycopg.ProgrammingError("no result available"), DATA, True),
        (psycopg.DataError("a string with a NUL"), DATA, True),
        (psycopg.NotSupportedError("pipeline"), DATA, True),
        (ConnectionResetError("reset"), OUTAGE, False),
        (OSError(24, "too many open files"), OUTAGE, False),
        (CheckpointerConfigurationError("tables are missing"), CONFIGURATION, True),
        (TypeError("not serializable"), DATA, True),
        (ValueError("a caller's bug"), DATA, True),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, Exception) else None,
)
def test_error_of_the_client_side_is_classified_by_its_type(
    error: Exception, kind: FailureKind, answered: bool
) -> None:
    failure = classify_postgres(error)
    assert (failure.kind, failure.answered, failure.error) == (kind, answered, error)


def test_base_classes_do_not_decide() -> None:
    """Both are what their names do not suggest: that is why codes decide."""
    assert issubclass(errors.ReadOnlySqlTransaction, psycopg.InternalError)
    assert issubclass(errors.InvalidPassword, psycopg.OperationalError)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("operator does not exist: text = smallint", DATA),
        ("operator does not exist: jsonb ->> bytea", DATA),
        ("Operator existiert nicht: text < uuid", DATA),
        ("operator does not exist: uuid = text", CONFIGURATION),
        ("operator does not exist: json @> jsonb", CONFIGURATION),
        ("function nothing(text) does not exist", CONFIGURATION),
    ],
)
def test_operator_that_does_not_exist_is_the_arguments_fault_where_the_column_is_as_it_should_be(
    said: str, kind: FailureKind
) -> None:
    assert classify_postgres(errors.UndefinedFunction(said)).kind is kind
