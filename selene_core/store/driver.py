"""What is sent through the driver itself: SQLAlchemy's work on a statement costs more than the answer.

It goes this way only where nobody misses it. An engine with event listeners or a log gets all statements from
SQLAlchemy, a driver with cursors of somebody else's through them. Errors come out as they do in SQLAlchemy:
wrapped, and a lost connection is given up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import generators
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

# Not public. Where a version of SQLAlchemy has it no longer, everything goes through SQLAlchemy.
_RAISE: Final[Any] = getattr(Connection, "_handle_dbapi_exception", None)
_PIPELINES: Final = psycopg.Pipeline.is_supported()
_CURSORS: Final = (psycopg.Cursor, psycopg.AsyncCursor)


def rows(conn: Connection, statement: str, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
    """Return all rows of a statement in the connection's transaction; begins one if there is none."""
    nested = conn.get_nested_transaction()
    if conn.in_transaction() and (nested is None or nested.is_active) and _is_unwatched(conn):
        return _rows(conn, statement, parameters)
    return conn.exec_driver_sql(statement, parameters).all()


def rows_alone(conn: Connection, statement: str, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
    """Return all rows of a statement on a connection in autocommit, which has no transaction."""
    if _is_unwatched(conn):
        return _rows(conn, statement, parameters)
    return conn.exec_driver_sql(statement, parameters).all()


def begin_with(conn: Connection, statement: str) -> None:
    """Begin the transaction of conn.begin() in the database, and send its first statement along.

    The statement has no parameters and no rows. It is one round trip; the driver alone would make two. They
    stay two statements: a distributed engine forwards the whole text that it is given to its nodes.
    """
    adapted: Any = conn.connection.dbapi_connection
    driver: Any = conn.connection.driver_connection
    if not (_PIPELINES and _is_unwatched(conn) and _begins_plainly(driver)):
        conn.exec_driver_sql(statement)
        return
    begin = _begin(driver.pgconn, statement.encode())
    try:
        if isinstance(adapted, AsyncAdapt_dbapi_connection):
            adapted.run_async(lambda _: driver.wait(begin))
        else:
            driver.wait(begin)
    except BaseException as exc:
        _raise(conn, exc, statement, None, None)


def _begins_plainly(driver: Any) -> bool:
    """Tell whether the driver would send a plain BEGIN, and has no cursors that trace statements."""
    return (
        driver.cursor_factory in _CURSORS
        and driver.isolation_level is driver.read_only is driver.deferrable is None
        and driver.pgconn.transaction_status == TransactionStatus.IDLE
        and driver.pgconn.pipeline_status == PipelineStatus.OFF  # else it is the host's
    )


def _begin(pgconn: PGconn, statement: bytes) -> PQGen[None]:
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(b"BEGIN", None)
    pgconn.send_query_params(statement, None)
    pgconn.pipeline_sync()
    yield from generators.send(pgconn)
    answers: list[PGresult] = []
    try:
        for _ in range(3):  # BEGIN, the statement, the end of the pipeline
            answers += yield from generators.fetch_many(pgconn)
    except psycopg.DatabaseError:
        # The connection ended. If the server told why, that says more.
        if not any(map(_is_refusal, answers)):
            raise
    if pgconn.status == ConnStatus.OK:
        pgconn.exit_pipeline_mode()
    for refusal in filter(_is_refusal, answers):
        raise error_from_result(refusal)


def _is_refusal(answer: PGresult) -> bool:
    return answer.status == ExecStatus.FATAL_ERROR


def _is_unwatched(conn: Connection) -> bool:
    """Tell whether no event listener and no log misses a statement."""
    return not (
        getattr(conn, "_has_events", True)
        or getattr(conn, "_echo", True)
        or getattr(conn.engine, "_has_events", True)
        or getattr(conn.dialect, "_has_events", True)
        or _RAISE is None
    )


def _rows(conn: Connection, statement: str, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
    cursor: Any = conn.connection.cursor()
    try:
        cursor.execute(statement, parameters)
        found: Sequence[Sequence[Any]] = cursor.fetchall()
    except BaseException as exc:
        _raise(conn, exc, statement, parameters, cursor)
    cursor.close()
    return found


def _raise(conn: Connection, exc: BaseException, statement: str, parameters: object, cursor: object) -> None:
    # With a statement it would wrap all errors. In SQLAlchemy's execution only those of the driver are.
    told = (statement, parameters) if isinstance(exc, psycopg.Error) else (None, None)
    _RAISE(conn, exc, *told, cursor, None)
