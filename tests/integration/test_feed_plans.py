"""How the feed's functions are carried out: on empty tables, and by the same session when they are full."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.integration.test_jit import EXPLAIN, nodes
from tests.support.calls import append
from tests.support.factories import wire
from tests.support.raw import Connection, connect
from tests.support.servers import LOGIN_ROLES, Database

CALLS = (
    "os_core.advance_feed('acme')",
    "os_core.advance_feed('acme', 2)",
    "os_core.enroll_feed('acme', 'billing')",
    "os_core.poll_feed('acme', 'billing')",
    "os_core.take_feed('acme', 'billing', 100)",
    "os_core.read_feed('acme', 0, 100)",
    "os_core.read_feed('acme', 2500, 1000)",
    "os_core.lease_feed('acme', 'relay', 'relay-1', 60000)",
    "os_core.ack_feed('acme', 'relay', {fence}, 0, 0)",
    "os_core.release_feed('acme', 'relay', {fence})",
    "os_core.feed_status('acme')",
)
SEQUENCE = "work_order_ledger_work_order_event_id_seq"
FORBIDDEN = {"Sort", "Incremental Sort", "Seq Scan", "Gather", "Gather Merge", "Hash", "Bitmap Heap Scan"}


@pytest.fixture
def explained(database: Database) -> Iterator[tuple[Connection, list[Any]]]:
    """Return a session of the application's, past a pooler, and the plans of what its functions carry out."""
    with connect(database.admin_url, autocommit=True) as admin:
        for name, value in EXPLAIN.items():
            admin.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'".encode())
    plans: list[Any] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        _, found, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if found:
            plans.append(json.loads(plan))

    url = database.server.url_for(LOGIN_ROLES["app"], database.name)
    with closing(connect(url, autocommit=True)) as conn:
        conn.add_notice_handler(note)
        yield conn, plans


def offences(told: Any) -> list[str]:
    """Name what walks through a whole table, or starts workers."""
    return [
        f"{node['Node Type']} in {told['Query Text']}"
        for node in nodes(told["Plan"])
        if node["Node Type"] in FORBIDDEN
        and node.get("Relation Name") != SEQUENCE
        # The consumers of a tenant, sorted by name, are few.
        and "ORDER BY listed.consumer" not in told["Query Text"]
    ]


def rows_of(told: Any) -> float:
    """Return the most rows that a part of a plan has yielded or thrown away."""
    return max(
        float(node.get("Actual Rows", 0)) * float(node.get("Actual Loops", 1))
        + float(node.get("Rows Removed by Filter", 0))
        for node in nodes(told["Plan"])
    )


def test_plans__walk_through_nothing(explained: tuple[Connection, list[Any]]) -> None:
    conn, plans = explained
    for filled in False, True:
        if filled:
            for number in range(6):  # another tenant's rows lie between
                tenant, order = ("acme", "rival")[number % 2], f"order-{number}"
                fields = [wire("FIELD_SET", order) for _ in range(999)]
                append(conn, tenant, wire("WORK_ORDER_CREATED", order), *fields)
        for call in CALLS:
            plans.clear()
            conn.execute(f"SELECT * FROM {call.format(fence=1 + filled)}".encode())
            assert plans
            assert [offence for told in plans for offence in offences(told)] == []
    # All is numbered and settled. What a page costs does not depend on how much lies before and behind it.
    for _ in range(3):
        conn.execute("SELECT os_core.advance_feed('acme')")
    for call, most in (
        ("os_core.advance_feed('acme')", 1),
        ("os_core.poll_feed('acme', 'billing')", 1),
        ("os_core.feed_status('acme')", 3),
        ("os_core.read_feed('acme', 10, 5)", 5),
        ("os_core.read_feed('acme', 2900, 5)", 5),
        ("os_core.take_feed('acme', 'billing', 5)", 5),
    ):
        if call.startswith("os_core.advance"):
            append(conn, "acme", wire("FIELD_SET", "order-0"))
        plans.clear()
        conn.execute(f"SELECT * FROM {call}".encode())
        assert max(map(rows_of, plans)) <= most, json.dumps(max(plans, key=rows_of))
