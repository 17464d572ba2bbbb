"""What an exception means for its caller: is_retryable and http_status."""

from __future__ import annotations

from typing import Final

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from selene_core.contract.errors import ConcurrencyConflict, SchemaError, SeleneError

_NO_SESSION: Final = frozenset(
    {
        "57P01",  # the server shuts down, or somebody ended the session
        "57P02",  # the server crashed
        "57P03",  # it starts
        "57P04",  # the database was dropped
        "57P05",  # the session was idle for longer than somebody allowed
        "25P03",  # the same in a transaction; a client may see the broken connection alone
        "25P04",  # the transaction took longer than somebody allowed
        "53300",  # too many are connected
    }
)

# Refused by the database for the moment: everything is rolled back, and the same may succeed at once.
_ROLLED_BACK: Final = frozenset({"40001", "40P01", ConcurrencyConflict.sqlstate})
# A lock or a statement took longer than somebody set, or the server is short of something.
_LATER: Final = frozenset({"55P03", "57014"})
_SHORT_OF_RESOURCES: Final = "53"
_UNAVAILABLE: Final = 503
_FAULT: Final = 500


def sqlstate_of(exc: BaseException) -> str | None:
    """Return the SQLSTATE that the database answered with; None if it did not answer."""
    if isinstance(exc, SeleneError):
        return getattr(exc, "sqlstate", None)
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def is_lost(exc: BaseException) -> bool:
    """Tell whether the connection broke, or could not be made."""
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    state = sqlstate_of(exc)
    if not isinstance(cause, psycopg.Error):
        return False
    if isinstance(exc, DBAPIError) and exc.connection_invalidated:
        return True
    unanswered = state is None or state.startswith("08")
    return state in _NO_SESSION or (isinstance(cause, psycopg.OperationalError) and unanswered)


def is_retryable(exc: BaseException, *, retry_unknown: bool = False) -> bool:
    """Tell whether the same work may be run again at once, in a new transaction (contract §12).

    True where nothing was done, for certain: after a serialization failure (40001), a deadlock (40P01) and
    ConcurrencyConflict, and if no connection could be made. After a lost connection nobody knows whether the
    work was committed: then the answer is `retry_unknown`. Give True if each write of the work has an
    idempotency_key, or if it writes nothing. False for all else, LeaseHeld too: that one takes time.
    """
    if is_lost(exc):
        return retry_unknown or _is_unconnected(exc)
    return sqlstate_of(exc) in _ROLLED_BACK


def _is_unconnected(exc: BaseException) -> bool:
    # SQLAlchemy does not invalidate a connection that it never had. A lost one it does, also in COMMIT.
    return isinstance(exc, DBAPIError) and exc.statement is None and not exc.connection_invalidated


def http_status(exc: BaseException) -> int:
    """Return the status with which a service that speaks HTTP may answer an error (contract §12).

    Of each of our errors it is the attribute `http_status`. 503, which means try again later, for a
    connection that broke or could not be made, a conflict of transactions, a timeout, and a server that is
    short of connections, memory or disk. 500 for every other exception.
    """
    if isinstance(exc, SeleneError | SchemaError):
        return getattr(exc, "http_status", _FAULT)
    state = sqlstate_of(exc) or ""
    passing = state in _ROLLED_BACK | _LATER or state.startswith(_SHORT_OF_RESOURCES)
    return _UNAVAILABLE if passing or is_lost(exc) or isinstance(exc, PoolTimeoutError) else _FAULT
