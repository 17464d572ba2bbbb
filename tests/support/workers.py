"""Leases and attempts as a worker in any language asks for them, and ways to let time pass."""

import secrets
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from tests.support.calls import Row, Tenant
from tests.support.races import wait_until
from tests.support.raw import Connection

LIMITS: dict[str, Any] = {"timeout_ms": 60_000, "max_retries": 2, "retry_backoff_ms": 3_600_000}


def new_token() -> str:
    """Mint a lease token."""
    return secrets.token_urlsafe(24)


def _one(conn: Connection, statement: str, parameters: list[Any]) -> Row:
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement.encode(), parameters)
        row = cursor.fetchone()
    assert row is not None
    return row


def acquire(
    conn: Connection,
    tenant_id: str,
    order: str,
    token: str,
    *,
    owner: Any = "worker-1",
    ttl_ms: Any = 60_000,
    key: Any = None,
) -> Row:
    """Take a lease."""
    return _one(
        conn,
        "SELECT * FROM os_core.acquire_lease(%s, %s, %s, %s, %s, %s)",
        [tenant_id, order, owner, token, ttl_ms, key],
    )


def claim(
    conn: Connection,
    tenant_id: str,
    token: Any = None,
    *,
    owner: Any = "worker-1",
    ttl_ms: Any = 60_000,
    statuses: Any = ("EXECUTING",),
) -> Row | None:
    """Take the lease on the next order; None if there is none."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM os_core.claim_work_order(%s, %s, %s, %s, %s)",
            [tenant_id, owner, token or new_token(), ttl_ms, None if statuses is None else [*statuses]],
        )
        return cursor.fetchone()


def renew(conn: Connection, tenant_id: str, order: str, token: Any, ttl_ms: Any = 60_000) -> Row:
    """Keep a lease."""
    return _one(conn, "SELECT * FROM os_core.renew_lease(%s, %s, %s, %s)", [tenant_id, order, token, ttl_ms])


def release(conn: Connection, tenant_id: str, order: str, token: Any, not_before: Any = None) -> bool:
    """Give a lease back; tell if it was not before."""
    row = _one(
        conn,
        "SELECT os_core.release_lease(%s, %s, %s, %s) AS released",
        [tenant_id, order, token, not_before],
    )
    released: bool = row["released"]
    return released


def start(
    conn: Connection,
    tenant_id: str,
    order: str,
    key: Any = "start-1",
    *,
    step: Any = "book",
    token: Any = None,
    **limits: Any,
) -> Row:
    """Start an attempt."""
    return _one(
        conn,
        "SELECT * FROM os_core.start_step_attempt(%s, %s, %s, %s, %s, %s, %s, %s)",
        [tenant_id, order, step, *{**LIMITS, **limits}.values(), key, token],
    )


def finish(
    conn: Connection,
    tenant_id: str,
    step_attempt_id: Any,
    outcome: Any = "SUCCEEDED",
    *,
    reason_code: Any = 7,
    retryable: Any = False,
    token: Any = None,
    key: Any = None,
) -> Row:
    """Finish an attempt."""
    return _one(
        conn,
        "SELECT * FROM os_core.finish_step_attempt(%s, %s, %s, %s, %s, %s, %s)",
        [tenant_id, step_attempt_id, outcome, reason_code, retryable, token, key],
    )


def due(conn: Connection, tenant_id: str, limit: Any = 100) -> list[Row]:
    """List the attempts after which the next may start."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM os_core.due_step_retries(%s, %s)", (tenant_id, limit))
        return cursor.fetchall()


def leases(tenant: Tenant, order: str) -> list[Row]:
    """Return the leases of an order, as a superuser sees them."""
    with tenant.admin.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM os_core.work_order_leases WHERE tenant_id = %s AND work_order_id = %s"
            " ORDER BY fence",
            (tenant.id, order),
        )
        return cursor.fetchall()


def attempts(tenant: Tenant, order: str) -> list[Row]:
    """Return the attempts of an order, as a superuser sees them."""
    with tenant.admin.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM os_core.work_order_step_attempts WHERE tenant_id = %s AND work_order_id = %s"
            " ORDER BY step_attempt_id",
            (tenant.id, order),
        )
        return cursor.fetchall()


def everything(tenant: Tenant, order: str) -> tuple[Any, ...]:
    """Return all that there is about an order, to compare it with what it is later."""
    return tenant.ledger(order), tenant.projection(order), leases(tenant, order), attempts(tenant, order)


def wait_past(tenant: Tenant, moment: datetime) -> None:
    """Wait until the database's clock is past a moment."""
    query = "SELECT clock_timestamp() > %s"
    wait_until(lambda: tenant.admin.execute(query, (moment,)).fetchone() == (True,), f"the clock: {moment}")


def expired_lease(tenant: Tenant, order: str, token: str, owner: str = "worker-1") -> Row:
    """Take a lease and let it expire."""
    lease = acquire(tenant.app, tenant.id, order, token, owner=owner, ttl_ms=1)
    wait_past(tenant, lease["lease_expires_at"])
    return lease
