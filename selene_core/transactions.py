"""Calls that are transactions of their own: append in one round trip, rebuild a tenant in many short ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selene_core import work_order_statements as statements
from selene_core.contracts import AppendResult, check_tenant_id
from selene_core.database import tenant_scope
from selene_core.repository import fetch
from selene_core.work_orders import batch_to_wire, rebuild_by_groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Connection, Engine, RowMapping

    from selene_core.contracts import RebuildReport, WorkOrderLedgerEventInput


def append_events(
    engine: Engine, tenant_id: str, events: Iterable[WorkOrderLedgerEventInput]
) -> list[AppendResult]:
    """Append 1..1000 events, all or none, in one round trip and a transaction of its own (SPEC.md section 4).

    Raises what WorkOrderRepository.append_many raises. After a lost connection, send the same events again:
    those with an idempotency_key are not written twice.
    """
    tenant_id, wire = check_tenant_id(tenant_id), batch_to_wire(events)
    with engine.connect() as conn:
        return append_batch(conn, tenant_id, wire)


def append_batch(conn: Connection, tenant_id: str, wire: str) -> list[AppendResult]:
    """Append what batch_to_wire() made, on a connection that has no transaction yet."""
    # In autocommit the statement is the transaction, and the function makes it the tenant's.
    conn.execution_options(isolation_level="AUTOCOMMIT")
    return [AppendResult(**row) for row in fetch(conn, statements.APPEND, tenant_id=tenant_id, events=wire)]


def rebuild_tenant(
    engine: Engine, tenant_id: str, progress: Callable[[RebuildReport], object] | None = None
) -> RebuildReport:
    """Rebuild every work order of a tenant, one short transaction per group of orders (SPEC.md section 5).

    `progress` gets the sums so far after each group. Interrupted, it keeps what it has done: run it again.
    """
    tenant_id = check_tenant_id(tenant_id)
    with engine.connect() as conn:
        return rebuild_groups(conn, tenant_id, progress)


def rebuild_groups(
    conn: Connection, tenant_id: str, progress: Callable[[RebuildReport], object] | None
) -> RebuildReport:
    """Rebuild as rebuild_tenant() does, on a connection that has no transaction yet."""

    def rebuild_group(after: str) -> RowMapping:
        with tenant_scope(conn, tenant_id):
            return fetch(conn, statements.REBUILD_NEXT, tenant_id=tenant_id, after=after)[0]

    return rebuild_by_groups(rebuild_group, progress)
