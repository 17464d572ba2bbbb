"""What an append writes: no new index entry where status and bucket stay, no WAL for what stays."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import make_url

from selene_core.local import LocalServerUnavailable, local_database
from tests.support.calls import Tenant
from tests.support.factories import wire
from tests.support.raw import Connection, connect
from tests.support.servers import Server

ORDERS, ROUNDS = 40, 8


def updates(admin: Connection) -> tuple[int, int]:
    """Return how many rows of the projection were updated, and how many of these updates were HOT."""
    admin.execute("SELECT pg_stat_clear_snapshot()")
    row = admin.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'work_orders_current'"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("at_once", [1, 20], ids=["single", "batch"])
def test_append__updates_are_hot_where_the_status_stays(acme: Tenant, at_once: int) -> None:
    """85 of 100; the rest is orders that a bucket of time ends for, and pages that are full for a moment."""
    orders = [acme.order("EXECUTING") for _ in range(ORDERS)]
    events = [
        wire("FIELD_SET", order, payload={"field_key": f"field-{turn % 4}", "value": f"value {turn}"})
        if turn % 3
        else wire("STEP_STARTED", order, payload={"resource": "calendar"})
        for turn in range(ROUNDS)
        for order in orders
    ]
    for event in events:
        del event["work_order_status"]
    for start in range(0, len(events), at_once):
        acme.append(*events[start : start + at_once])
    acme.app.execute("SELECT pg_stat_force_next_flush()")
    acme.app.execute("SELECT 1")
    changed, hot = updates(acme.admin)
    assert changed >= ROUNDS * ORDERS
    assert hot / changed >= 0.85


@pytest.fixture(scope="module")
def physical(server: Server) -> Iterator[Tenant]:
    """A tenant on a server whose WAL is not for logical decoding, which needs whole rows."""
    with ExitStack() as stack:
        try:
            database = stack.enter_context(local_database(version=server.version))
        except LocalServerUnavailable:
            database = stack.enter_context(local_database())
        app, admin = (
            stack.enter_context(closing(connect(make_url(url), autocommit=True)))
            for url in (database.url, database.admin_url)
        )
        yield Tenant("acme", app, admin)


def wal(tenant: Tenant, event: dict[str, Any]) -> tuple[int, int]:
    """Append the event, and return how many records of WAL this took, and bytes."""
    written = tenant.app.execute(
        "EXPLAIN (ANALYZE, WAL, FORMAT JSON) SELECT * FROM os_core.append_work_order_events(%s, %s)",
        (tenant.id, Jsonb([event])),
    ).fetchone()
    assert written is not None
    plan = written[0][0]["Plan"]
    return plan["WAL Records"], plan["WAL Bytes"]


def test_append__writes_no_wal_for_fields_that_stay(physical: Tenant) -> None:
    """As much for long fields as for short ones. Of each event the least of some: a page may split."""
    events: list[tuple[str, str, dict[str, str]]] = [
        ("STATUS_CHANGED", "CLARIFY", {}),
        ("FIELD_PROMPTED", "CLARIFY", {"field_key": "key-{}", "prompt_dedupe_key": "key-{}"}),
        ("STEP_STARTED", "CONFIRM", {}),
        ("EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", {"request_id": "request-{}", "target_user_id": "alice"}),
        ("EXTERNAL_APPROVAL_RESOLVED", "CONFIRM", {"request_id": "request-{}", "outcome": "APPROVED"}),
    ]
    short, long = (physical.order(fields={"text": text}) for text in ("short", "long " * 200))
    more: dict[str, int] = {}
    for turn in range(4):
        for event_type, status, payload in events:
            said = {key: value.format(turn) for key, value in payload.items()}
            (_, least), (_, most) = (
                wal(physical, wire(event_type, order, work_order_status=status, payload=said))
                for order in (short, long)
            )
            more[event_type] = min(abs(most - least), more.get(event_type, 1000))
    assert {event_type: bytes_ for event_type, bytes_ in more.items() if bytes_ > 50} == {}


def test_append__writes_a_record_for_each_row_index_entry_and_lock(physical: Tenant) -> None:
    """Nine: the event, its five entries, the row, its lock, the foreign key's. A page may need one more."""
    order = physical.order()
    records = [
        wal(physical, wire("FIELD_SET", order, idempotency_key=f"key-{turn}", work_order_status="DRAFT"))[0]
        for turn in range(8)
    ]
    assert min(records) == 9
