"""Appends without a new index entry: updates are HOT where status and bucket stay (contract §2)."""

import pytest

from tests.support.calls import Tenant
from tests.support.factories import wire
from tests.support.raw import Connection

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
