"""Connections: URLs, one transaction for one tenant, and the one place that turns SQLSTATEs into errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.sql import SQL, Literal
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from selene_core.contract.errors import SeleneError, TenantScopeViolation, from_sqlstate
from selene_core.contract.events import check_tenant_id
from selene_core.store.binds import Bind, bound, joined

if TYPE_CHECKING:
    from sqlalchemy.engine import Transaction

_SCOPE: Final = "selene_tenant_scope"  # an execution option of the Connection
_TENANT_OF_TRANSACTION: Final = "SELECT current_setting('selene.tenant_id', TRUE)"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise what the database refuses as our errors; anything else passes untouched (contract §12)."""
    try:
        yield
    except (DBAPIError, psycopg.Error) as exc:
        if (error := _translated(exc)) is None:
            raise
        raise error from exc


def _translated(exc: DBAPIError | psycopg.Error) -> SeleneError | None:
    # By SQLSTATE alone: a private one reaches SQLAlchemy as plain DatabaseError, others by several classes.
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

    On an engine: committed at the end, rolled back on an exception. On a connection: joins the transaction
    that is open there and leaves its end to whoever began it; where none is open, begins and ends its own.
    On an ORM session: joins its transaction, which the session begins where it has none, and always leaves
    the end to session.commit() or rollback().

    The tenant is the transaction's, to its end: a joined transaction takes no second one, not even after the
    block. A value that somebody left in the session (SET selene.tenant_id) counts for nothing where the scope
    begins the transaction; to a joined one it is the tenant, because nobody can tell the two apart.

    Raises ContractViolation for what is no tenant id; TenantScopeViolation when the joined transaction is
    another tenant's, and in AUTOCOMMIT, where a tenant would be gone before the next statement; TypeError for
    anything else to work on and for another driver than psycopg 3.
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
        # The statement and not set_config(): a distributed engine forwards SET LOCAL to its nodes.
        conn.exec_driver_sql(SQL("SET LOCAL selene.tenant_id = {}").format(Literal(tenant_id)).as_string())
        outer = conn.get_execution_options().get(_SCOPE)
        # On the Connection and not in conn.info, which the pool keeps for the next who gets the same session.
        conn.execution_options(**{_SCOPE: _Scope(tenant_id, conn.get_transaction())})
        try:
            yield
        finally:
            conn.execution_options(**{_SCOPE: outer})


def in_autocommit(conn: Connection) -> bool:
    """Tell whether every statement of the connection is a transaction of its own."""
    driver_connection = conn.connection.driver_connection
    return driver_connection is not None and bool(driver_connection.autocommit)


def scope_tenant(conn: Connection) -> str:
    """Return the tenant of the tenant_scope that the connection is in; raises TenantScopeViolation.

    It knows the commits that SQLAlchemy knows. Whether the transaction really has the tenant, only the
    database can tell, in the statement that does the work: see confirm_scope() and os_core.require_tenant().
    """
    scope: _Scope | None = conn.get_execution_options().get(_SCOPE)
    if scope is None:
        raise TenantScopeViolation("the connection is not inside a tenant_scope")
    if scope.transaction is None or not scope.transaction.is_active:
        raise TenantScopeViolation("the transaction of the tenant_scope has ended inside its block")
    return scope.tenant_id


def confirm_scope(conn: Connection, found: str | None) -> None:
    """Refuse what was read in a transaction without the scope's tenant; raises TenantScopeViolation."""
    if found != scope_tenant(conn):
        raise TenantScopeViolation("the transaction no longer has the tenant of its tenant_scope")
