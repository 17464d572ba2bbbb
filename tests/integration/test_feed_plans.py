"""How the feed's functions are carried out: on empty tables, and by the same session when they are full."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.integration.test_jit import EXPLAIN, nodes
from tests.support.calls import append
from tests.support.factories import wire
from tests.support.feeds import advance
from tests.support.plans import buffers
from tests.support.raw import Connection, connect
from tests.support.servers import LOGIN_ROLES, Database
from tests.support.sessions import Sessions

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


@pytest.fixture
def own(database: Database) -> Iterator[Sessions]:
    """Open sessions on a database of the test's own."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        yield sessions


def offences(told: Any) -> list[str]:
    """Name what walks through a whole table, or starts workers."""
    return [
        f"{node['Node Type']} in {told['Query Text']}"
        for node in nodes(told["Plan"])
        if node["Node Type"] in FORBIDDEN
        and node.get("Relation Name") != SEQUENCE
        # A page, by position.
        and "ROWS FROM" not in told["Query Text"]
        # The consumers of a tenant, sorted by name, are few.
        and "ORDER BY listed.consumer" not in told["Query Text"]
    ]


def blocks(conn: Connection, statement: str) -> int:
    """Return how many blocks a statement looks at, once its session knows the catalogue."""
    return min(buffers(conn, statement) for _ in range(3))


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


def events(conn: Connection, tenant: str, order: str, count: int) -> None:
    """Append a work order of so many events."""
    payload = {"field_key": "note", "value": "x" * 60}
    append(
        conn,
        tenant,
        wire("WORK_ORDER_CREATED", order),
        *(wire("FIELD_SET", order, payload=payload) for _ in range(count - 1)),
    )


def together(conn: Connection, _: Sessions) -> None:
    for number in range(4):
        events(conn, "acme", f"order-{number}", 500)
    advance(conn, "acme")


def by_turns(conn: Connection, _: Sessions) -> None:
    for number in range(120):
        events(conn, ("acme", "rival", "third")[number % 3], f"order-{number}", 50)
    advance(conn, "acme")


def with_erasures(conn: Connection, _: Sessions) -> None:
    for number in range(4):
        events(conn, "acme", f"order-{number}", 500)
        conn.execute("SELECT os_core.erase_subject('acme', %s, 7)", (f"subject-{number}",))
    advance(conn, "acme")


def with_late_ones(conn: Connection, sessions: Sessions) -> None:
    late = sessions.open(autocommit=False)
    events(late.conn, "acme", "late", 10)
    for number in range(4):
        events(conn, "acme", f"order-{number}", 990)
        if number == 0:
            advance(conn, "acme")
            late.conn.commit()
    advance(conn, "acme")


@pytest.mark.parametrize("layout", [together, by_turns, with_erasures, with_late_ones])
def test_page__looks_at_little_more_blocks_than_one_of_the_ledger(
    own: Sessions, layout: Callable[[Connection, Sessions], None]
) -> None:
    conn = own.open().conn
    layout(conn, own)
    conn.execute("SELECT set_config('selene.tenant_id', 'acme', FALSE)")
    after = 990
    row = conn.execute(
        "SELECT min(work_order_event_id) - 1, count(*) FROM os_core.read_feed('acme', %s, 1000)"
        " WHERE work_order_id <> 'late'",
        (after,),
    ).fetchone()
    assert row is not None
    assert row[1] > 980
    plain = blocks(
        conn,
        "SELECT * FROM os_core.work_order_ledger WHERE tenant_id = 'acme'"
        f" AND work_order_event_id > {row[0]} ORDER BY work_order_event_id LIMIT 1000",
    )
    assert blocks(conn, f"SELECT * FROM os_core.read_feed('acme', {after}, 1000)") <= 1.5 * plain
