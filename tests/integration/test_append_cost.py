"""What an append costs in pages, however many events the tenant has (contract §4)."""

import json
from typing import Any

from tests.support.calls import append
from tests.support.factories import new_id, wire
from tests.support.plans import buffers
from tests.support.raw import connect
from tests.support.servers import Database

APPEND = "SELECT * FROM os_core.append_work_order_events(%s, %s)"


def field_set(order: str) -> dict[str, Any]:
    return wire("FIELD_SET", order, idempotency_key=new_id())


def test_append__costs_the_same_in_a_session_that_began_with_empty_tables(database: Database) -> None:
    """Plans are made for empty tables, and kept: none may walk through a tenant's events or orders."""
    orders = [new_id() for _ in range(3)]
    with (
        connect(database.app_url, autocommit=True) as old,
        connect(database.app_url, autocommit=True) as other,
    ):

        def costs() -> list[int]:
            """Return the pages of an append alone, of a batch, and of a batch of new orders."""
            calls = ([field_set(orders[0])], [*map(field_set, orders)], [wire("WORK_ORDER_CREATED")] * 1)
            return [buffers(old, APPEND, ("acme", json.dumps(events))) for events in calls]

        for order in orders:
            append(old, "acme", wire("WORK_ORDER_CREATED", order))
        few = [min(found) for found in zip(*(costs() for _ in range(7)), strict=True)]
        for _ in range(10):
            append(other, "acme", *(wire("WORK_ORDER_CREATED", new_id()) for _ in range(1000)))
        many = [min(found) for found in zip(*(costs() for _ in range(3)), strict=True)]
    # The indexes are higher; a walk would read thousands of pages.
    assert [more < 3 * less + 60 for less, more in zip(few, many, strict=True)] == [True] * 3, (few, many)
