"""append_events and rebuild_tenant: calls that can make their own transactions on an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine

from selene_core.contract.events import WorkOrderLedgerEventInput, check_tenant_id
from selene_core.contract.rows import AppendResult, RebuildReport
from selene_core.store import work_order_statements as statements
from selene_core.store.binds import Bind, bound, checked, joined
from selene_core.store.driver import rows_alone
from selene_core.store.repository import DriverStatement, fetch, logged_refusals, send
from selene_core.store.scope import autocommitting, in_autocommit, tenant_scope, translate_errors
from selene_core.store.work_orders import batch_to_wire, rebuild_by_groups

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

T = TypeVar("T")


def append_events(
    bind: Bind, tenant_id: str, events: Iterable[WorkOrderLedgerEventInput]
) -> list[AppendResult]:
    """Append 1..1000 events, all or none (contract §4).

    On an engine: in a transaction of its own and one round trip. On a connection or an ORM session: in its
    transaction, as tenant_scope does, so that the events are committed or rolled back with the rest of it.

    Raises what WorkOrderRepository.append_many and tenant_scope raise. After a lost connection, send the same
    events again: those with an idempotency_key are not written twice.
    """
    bind = bound("append_events", bind)
    tenant_id, wire = check_tenant_id(tenant_id), batch_to_wire(events)
    if isinstance(bind, Engine):
        with bind.connect() as conn:
            return append_alone(conn, tenant_id, wire)
    return append_joined(joined(bind), tenant_id, wire)


def append_alone(conn: Connection, tenant_id: str, wire: str) -> list[AppendResult]:
    """Append the text of batch_to_wire() on a connection of an engine's, which has no transaction yet."""
    with logged_refusals(tenant_id):
        return alone(conn, statements.APPEND, tenant_id=tenant_id, events=wire)


def alone(conn: Connection, statement: DriverStatement[T], **parameters: object) -> list[T]:
    """Send a statement that is a transaction of its own, and read its rows; a lost lease is not logged."""
    with autocommitting(conn), translate_errors():
        rows = rows_alone(conn, statement.text, parameters)
    return [statement.read(row) for row in rows]


def append_joined(conn: Connection, tenant_id: str, wire: str) -> list[AppendResult]:
    """Append the text of batch_to_wire(), in the connection's transaction if it has one."""
    if in_autocommit(conn):
        rows = send(conn, statements.APPEND, tenant_id=tenant_id, events=wire)
    else:
        with tenant_scope(conn, tenant_id):
            rows = send(conn, statements.APPEND_IN_SCOPE, tenant_id=tenant_id, events=wire)
    return [statements.APPEND.read(row) for row in rows]


def rebuild_tenant(
    engine: Engine, tenant_id: str, progress: Callable[[RebuildReport], object] | None = None
) -> RebuildReport:
    """Rebuild every work order of a tenant, in one short transaction for each group of orders (contract §5).

    `progress` is called with the sums so far after each group. If it is interrupted, the finished groups are
    kept: run it again. Inside a transaction use WorkOrderRepository.rebuild(). Raises TypeError for anything
    but an Engine.
    """
    owned: Engine = checked("rebuild_tenant", "an Engine", engine, Engine)
    tenant_id = check_tenant_id(tenant_id)
    with owned.connect() as conn:
        return rebuild_groups(conn, tenant_id, progress)


def rebuild_groups(
    conn: Connection, tenant_id: str, progress: Callable[[RebuildReport], object] | None
) -> RebuildReport:
    """Rebuild as rebuild_tenant() does, on a connection that has no transaction yet."""

    def rebuild_group(after: str) -> RowMapping:
        with tenant_scope(conn, tenant_id):
            return fetch(conn, statements.REBUILD_NEXT, tenant_id=tenant_id, after=after)[0]

    return rebuild_by_groups(rebuild_group, progress)
