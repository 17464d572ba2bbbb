"""The feed's functions as a consumer in any language calls them, and what the ledger says of the result."""

from collections.abc import Sequence
from typing import Any

from psycopg.rows import dict_row

from tests.support.calls import Row, Tenant
from tests.support.raw import Connection


def rows(conn: Connection, statement: str, *parameters: Any) -> list[Row]:
    """Return the rows of a statement."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(statement.encode(), parameters)
        return cursor.fetchall()


def value(conn: Connection, statement: str, *parameters: Any) -> Any:
    """Return the only value of a statement."""
    row = conn.execute(statement.encode(), parameters).fetchone()
    assert row is not None
    return row[0]


def advance(conn: Connection, tenant_id: str, limit: int = 10_000) -> Any:
    """Give positions; return to how many events, or None."""
    return value(conn, "SELECT os_core.advance_feed(%s, %s)", tenant_id, limit)


def read(conn: Connection, tenant_id: str, after: int = 0, limit: int = 1000) -> list[Row]:
    """Return the events after a position."""
    return rows(conn, "SELECT * FROM os_core.read_feed(%s, %s, %s)", tenant_id, after, limit)


def take(conn: Connection, tenant_id: str, consumer: Any = "billing", limit: Any = 1000) -> list[Row]:
    """Take a consumer's next events."""
    return rows(conn, "SELECT * FROM os_core.take_feed(%s, %s, %s)", tenant_id, consumer, limit)


def lease(conn: Connection, tenant_id: str, owner: str = "relay-1", ttl_ms: Any = 60_000) -> Row:
    """Lease the consumer relay."""
    (row,) = rows(conn, "SELECT * FROM os_core.lease_feed(%s, 'relay', %s, %s)", tenant_id, owner, ttl_ms)
    return row


def ack(conn: Connection, tenant_id: str, fence: int, after: int, to: int) -> Any:
    """Move the consumer relay."""
    return value(conn, "SELECT os_core.ack_feed(%s, 'relay', %s, %s, %s)", tenant_id, fence, after, to)


def problems(conn: Connection, tenant_id: str) -> list[Row]:
    """Return what verify_feed finds."""
    return rows(conn, "SELECT * FROM os_core.verify_feed(%s)", tenant_id)


def head(tenant: Tenant) -> Row:
    """Return the head of a tenant's feed."""
    (row,) = rows(tenant.admin, "SELECT * FROM os_core.work_order_feed_heads WHERE tenant_id = %s", tenant.id)
    return row


def wrong(tenant: Tenant, got: Sequence[Row]) -> list[str]:
    """Compare what a consumer got with the ledger, and nothing else: missed, twice, out of order."""
    ledger = {event["work_order_event_id"]: event for event in tenant.ledger()}
    events = [event for event in got if event["event_type"] != "SUBJECT_ERASED"]
    ids = [event["work_order_event_id"] for event in events]
    found = [f"missed {id_}" for id_ in sorted(ledger.keys() - set(ids))]
    found += [f"not in the ledger {id_}" for id_ in sorted(set(ids) - ledger.keys())]
    found += [f"twice {id_}" for id_ in sorted(set(ids)) if ids.count(id_) > 1]
    last: dict[str, int] = {}
    for event in events:
        seq, order = event["work_order_seq"], event["work_order_id"]
        if seq != last.get(order, 0) + 1:
            found.append(f"{order}: {seq} after {last.get(order, 0)}")
        last[order] = seq
    positions = [event["feed_position"] for event in got]
    if positions != list(range(1, len(got) + 1)):
        found.append(f"positions {positions}")
    told = [(each["payload"]["subject_id"], each["created_at"]) for each in got if each not in events]
    records = tenant.admin.execute(
        "SELECT subject_id, erased_at FROM os_core.subject_erasures WHERE tenant_id = %s", (tenant.id,)
    ).fetchall()
    if sorted(told) != sorted(records):
        found.append(f"erasures {told} for {records}")
    found += [str(problem) for problem in problems(tenant.app, tenant.id)]
    return found


def drained(tenant: Tenant, consumer: str = "billing") -> list[Row]:
    """Give positions and take events until nothing is left; fail if another is at the feed or the place."""
    got: list[Row] = []
    while True:
        numbered = advance(tenant.app, tenant.id)
        taken = take(tenant.app, tenant.id, consumer)
        if not numbered and not taken:
            # That "nothing" may only be for now.
            assert numbered == 0, "another transaction gives positions"
            is_behind = "SELECT feed_position < last_position FROM os_core.feed_status(%s, %s)"
            assert not value(tenant.app, is_behind, tenant.id, consumer), "another has the consumer's place"
            return got
        got += taken
