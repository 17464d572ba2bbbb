"""A tenant on a cluster: its feed after moves, and its removal."""

from collections.abc import Iterator

import pytest

from selene_core import create_selene_engine
from selene_core.store.removal import count_tenant, remove_tenant
from selene_core.store.tables import METADATA
from tests.citus.cluster import Cluster, distributed_database, move, rows_of
from tests.support.calls import append, refused
from tests.support.factories import wire
from tests.support.feeds import advance, problems
from tests.support.raw import Connection
from tests.support.writes import CALLS, make

pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]

STAY = {"os_core.tenant_removals", "os_core.work_order_feed_heads"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a distributed database."""
    with distributed_database() as found:
        yield found


def fed(app: Connection, tenant_id: str, limit: int) -> list[tuple[object, ...]]:
    """Read the whole feed, page by page."""
    rows: list[tuple[object, ...]] = []
    query = "SELECT * FROM os_core.read_feed(%s, %s, %s)"
    while page := app.execute(query, (tenant_id, rows[-1][0] if rows else 0, limit)).fetchall():
        assert len(page) <= limit
        rows += page
    return rows


def test_feed__has_the_events_and_erasures_of_all_nodes_once_and_in_order(cluster: Cluster) -> None:
    tenant_id = "moving"
    orders = ("a", "b", "c")
    with cluster.app() as app, cluster.connect() as admin:
        append(app, tenant_id, *(wire("WORK_ORDER_CREATED", order) for order in orders))
        for place in range(4):
            append(app, tenant_id, *(wire("FIELD_SET", order) for order in orders))
            app.execute(
                "SELECT * FROM os_core.erase_subject(%s, %s, 7)", (tenant_id, f"person-{place}")
            ).fetchall()
            if place % 2:  # else what this node wrote has no positions when the tenant leaves it
                while advance(app, tenant_id):
                    pass
            append(app, tenant_id, wire("FIELD_SET", "a"))
            move(admin, [tenant_id])
            if place % 2:  # the next node's first is an erasure
                app.execute(
                    "SELECT * FROM os_core.erase_subject(%s, %s, 7)", (tenant_id, f"late-{place}")
                ).fetchall()
            assert problems(app, tenant_id) == []
        while advance(app, tenant_id):
            pass
        assert problems(app, tenant_id) == []
        whole = fed(app, tenant_id, 1000)
        for limit in (1, 2, 3, 7):
            assert fed(app, tenant_id, limit) == whole
        ledger = {
            row[0]: row
            for row in admin.execute(
                "SELECT * FROM os_core.work_order_ledger WHERE tenant_id = %s", (tenant_id,)
            )
        }
        erased = admin.execute(
            "SELECT subject_id, erased_at, drawn_event_id FROM os_core.subject_erasures WHERE tenant_id = %s",
            (tenant_id,),
        ).fetchall()
    assert [row[0] for row in whole] == [*range(1, len(whole) + 1)]
    events = [row[1:] for row in whole if row[1] is not None]
    assert len(events) == len(ledger) == 3 + 4 * 4
    assert all(ledger[row[0]] == row for row in events)
    for order in orders:
        assert [row[3] for row in events if row[2] == order] == [
            *range(1, 1 + sum(row[2] == order for row in events))
        ]
    told = [(row[15], row[18]) for row in whole if row[1] is None]
    assert sorted(told, key=str) == sorted((({"subject_id": name}, at) for name, at, _ in erased), key=str)
    assert len(told) == 6
    nodes = {event_id >> 48 for event_id in ledger}
    assert len(nodes) == 2
    assert {drawn >> 48 for _, _, drawn in erased} == nodes


def test_removal__ends_closes_the_door_and_leaves_the_others(cluster: Cluster) -> None:
    owner = create_selene_engine(cluster.url)
    with cluster.app() as app, cluster.connect() as admin:
        for tenant_id in ("leaving", "staying"):
            for call in CALLS.values():
                make(app, call, tenant_id)
        others = rows_of(admin, "staying")
        counted = count_tenant(owner, "leaving")
        assert counted.keys() == {table.fullname for table in METADATA.sorted_tables} - STAY
        assert remove_tenant(owner, "leaving").removed == counted
        assert rows_of(admin, "leaving").keys() == STAY
        assert rows_of(admin, "staying") == others
        make(app, CALLS["create"], "leaving")
        with refused("SL003"), admin.transaction():
            admin.execute("SET LOCAL selene.tenant_id = 'leaving'")
            admin.execute("DELETE FROM os_core.work_order_ledger WHERE tenant_id = 'leaving'")
    owner.dispose()
