"""tenant_scope: one transaction for one tenant; translate_errors: an SQLSTATE becomes an error class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Literal
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from selene_core.contract.errors import SeleneError, TenantScopeViolation, from_sqlstate
from selene_core.contract.events import check_tenant_id
from selene_core.store.binds import Bind, bound, joined
from selene_core.store.driver import begin_with
from selene_core.store.logs import log_hidden_error

if TYPE_CHECKING:
    from sqlalchemy.engine import Transaction

_SCOPE: Final = "selene_tenant_scope"  # an execution option of the Connection
_TENANT_OF_TRANSACTION: Final = "SELECT current_setting('selene.tenant_id', TRUE)"


class translate_errors:  # noqa: N801 - used as a function; a class costs a third of @contextmanager
    """Raise a refusal of the database as its SeleneError; other errors pass unchanged (contract §12)."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, DBAPIError | psycopg.Error) and (error := _translated(exc)) is not None:
            raise error from exc


def _translated(exc: DBAPIError | psycopg.Error) -> SeleneError | None:
    # By SQLSTATE alone: SQLAlchemy raises private ones as DatabaseError, and others as several classes.
    cause = exc.orig if isinstance(exc, DBAPIError) else exc
    if not isinstance(cause, psycopg.Error):
        return None
    return from_sqlstate(cause.sqlstate, cause.diag.message_primary, cause.diag.message_detail)


@dataclass(frozen=True, slots=True)
class _Scope:
    tenant_id: str
    transaction: Transaction | None


@contextmanager
def tenant_scope(bind: Bind, tenant_id: str) -> Iterator[Connection]:
    """Run one transaction for one tenant and yield its connection, for the repositories (contract §10).

    On an engine: begins a transaction, commits it at the end, rolls it back on an exception. On a connection:
    joins its open transaction and leaves commit and rollback to whoever began it; without one, it begins and
    ends its own. On an ORM session: joins its transaction, and leaves the end to session.commit() or
    rollback().

    The transaction keeps its tenant until it ends: a joined one cannot get a second tenant, not even after
    the block. A value that somebody left in the session (SET selene.tenant_id) is ignored if the scope begins
    the transaction. In a joined transaction it is the tenant, because nobody can tell the two apart.

    Raises ContractViolation for an invalid tenant id; TenantScopeViolation if the joined transaction has
    another tenant, and in AUTOCOMMIT, where the tenant would be lost before the next statement; TypeError for
    another bind and another driver than psycopg 3. A block that hides an error which ended the transaction
    loses what it wrote, as everywhere in PostgreSQL, and a warning is logged: try what may fail inside
    begin_nested().
    """
    bind = bound("tenant_scope", bind)
    tenant_id = check_tenant_id(tenant_id)
    if isinstance(bind, Engine):
        with bind.connect() as conn, _entered(conn, tenant_id):
            yield conn
    else:
        conn = joined(bind)
        with _entered(conn, tenant_id):
            yield conn


@contextmanager
def _entered(conn: Connection, tenant_id: str) -> Iterator[None]:
    if in_autocommit(conn):
        raise TenantScopeViolation("a tenant_scope needs a transaction: the connection is in AUTOCOMMIT")
    joins = conn.in_transaction()
    with nullcontext() if joins else conn.begin():
        if joins and conn.exec_driver_sql(_TENANT_OF_TRANSACTION).scalar() not in (None, "", tenant_id):
            raise TenantScopeViolation("the transaction belongs to another tenant")
        # SET LOCAL and not set_config(): a distributed engine forwards the statement to its nodes.
        if joins:
            conn.exec_driver_sql(_set_tenant(tenant_id))
        else:
            begin_with(conn, _set_tenant(tenant_id))
        outer = conn.get_execution_options().get(_SCOPE)
        # On the Connection and not in conn.info, which the pool keeps for the next user of the session.
        conn.execution_options(**{_SCOPE: _Scope(tenant_id, conn.get_transaction())})
        try:
            yield
            if driver_status(conn) is TransactionStatus.INERROR:
                # The server would answer a COMMIT with ROLLBACK, which no driver takes for an error.
                log_hidden_error(tenant_id)
        finally:
            conn.execution_options(**{_SCOPE: outer})


@lru_cache(maxsize=1024)
def _set_tenant(tenant_id: str) -> str:
    return SQL("SET LOCAL selene.tenant_id = {}").format(Literal(tenant_id)).as_string()


def in_autocommit(conn: Connection) -> bool:
    """Tell whether the connection is in autocommit: every statement is a transaction."""
    driver_connection = conn.connection.driver_connection
    return driver_connection is not None and bool(driver_connection.autocommit)


def driver_status(conn: Connection) -> TransactionStatus:
    """Return what the driver knows of the connection's transaction, without asking the server."""
    if conn.closed or conn.invalidated:
        return TransactionStatus.UNKNOWN
    driver_connection = conn.connection.driver_connection
    assert driver_connection is not None  # noqa: S101 - the pool has given it
    return TransactionStatus(driver_connection.pgconn.transaction_status)


@contextmanager
def autocommitting(conn: Connection) -> Iterator[None]:
    """Make each statement of the block a transaction of its own, on a connection that has none yet.

    The function that a statement calls sets the tenant. SQLAlchemy's AUTOCOMMIT does the same for twice the
    work.
    """
    driver: Any = conn.connection.dbapi_connection
    if in_autocommit(conn):
        yield
        return
    try:
        driver.autocommit = True
        yield
    finally:
        _leave_autocommit(conn, driver)


def _leave_autocommit(conn: Connection, driver: Any) -> None:
    """Make the connection what it was, or give it up: the pool's next user must not get autocommit."""
    if conn.invalidated:
        return
    try:
        driver.autocommit = False
    except BaseException as exc:
        conn.invalidate()
        if not isinstance(exc, Exception):
            raise  # canceled here


def scope_tenant(conn: Connection) -> str:
    """Return the tenant of the tenant_scope that the connection is in; raises TenantScopeViolation.

    It sees only commits made through SQLAlchemy. Whether the transaction really has the tenant, the database
    checks in each statement: see confirm_scope() and os_core.require_tenant().
    """
    scope: _Scope | None = conn.get_execution_options().get(_SCOPE)
    if scope is None:
        raise TenantScopeViolation("the connection is not inside a tenant_scope")
    if scope.transaction is None or not scope.transaction.is_active:
        raise TenantScopeViolation("the transaction of the tenant_scope has ended inside its block")
    return scope.tenant_id


def confirm_scope(conn: Connection, found: str | None) -> None:
    """Raise TenantScopeViolation if rows were read in a transaction without the scope's tenant."""
    if found != scope_tenant(conn):
        raise TenantScopeViolation("the transaction no longer has the tenant of its tenant_scope")
