"""The feed of a tenant that was removed and comes again: its positions go on (contract §16 and §18)."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import sqlalchemy as sa

from selene_core import Feed, feed_status, verify_feed
from selene_core.store import removal
from selene_core.store.removal import remove_tenant
from tests.support.calls import Tenant
from tests.support.feeds import advance, drained, take, value
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.sessions import Sessions


@pytest.fixture
def again(database: Database, admin_engine: sa.Engine) -> Iterator[Tenant]:
    """Return a tenant whose five events had positions, and were removed with it."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        for _ in range(5):
            acme.order()
        assert len(drained(acme)) == 5
        remove_tenant(admin_engine, acme.id)
        yield acme


def test_removed__there_is_nothing_to_take_and_nothing_is_wrong(again: Tenant, engine: sa.Engine) -> None:
    feed = Feed(engine, again.id, "billing")
    feed.enroll()
    with feed.batch() as (conn, events), feed.lease("relay-1", ttl_ms=60_000) as batch:
        assert (events, batch.events, batch.fence) == ([], (), None)
        assert conn.scalar(sa.text("SELECT pg_current_xact_id_if_assigned()::text")) is None
    assert verify_feed(engine, again.id) == []
    (status,) = feed_status(engine, again.id)
    assert (status.behind, status.waiting_since) == (0, None)


def test_being_removed__nothing_comes_again_and_no_poll_holds_it_up(
    again: Tenant, admin_engine: sa.Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer goes on meanwhile, while a stranger keeps the feed from settling."""
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 3)
    got, rounds = [], 0

    def consume(_: object) -> None:
        nonlocal rounds
        rounds += 1
        assert rounds < 100
        value(again.app, "SELECT os_core.poll_feed(%s, 'billing', 2)", again.id)
        got.extend(take(again.app, again.id, limit=1))

    with closing(connect(database.admin_url)) as stranger:
        stranger.execute("SELECT pg_current_xact_id()")
        for _ in range(20):
            again.order()
        advance(again.app, again.id)
        got.extend(take(again.app, again.id, limit=1))
        report = remove_tenant(admin_engine, again.id, consume)
    assert len(got) > 1
    assert len({event["work_order_event_id"] for event in got}) == len(got)
    assert report.removed["os_core.work_order_feed"] == 20
    order = again.order()
    assert [(each["feed_position"], each["work_order_id"]) for each in drained(again)] == [(26, order)]


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_come_again__each_event_comes_once(again: Tenant, engine: sa.Engine, limit: int) -> None:
    orders = [again.order() for _ in range(3)]
    advance(again.app, again.id)
    Feed(engine, again.id, "billing").enroll()
    (status,) = feed_status(engine, again.id)
    assert status.behind == 3
    got = []
    while taken := take(again.app, again.id, limit=limit):
        assert len(taken) <= limit
        got += taken
    assert [(event["feed_position"], event["work_order_id"]) for event in got] == [
        (6 + number, order) for number, order in enumerate(orders)
    ]
    assert take(again.app, again.id) == []
    assert verify_feed(engine, again.id) == []


def test_come_again__an_instance_that_ran_all_the_while_goes_on(
    again: Tenant, engine: sa.Engine, admin_engine: sa.Engine
) -> None:
    feed = Feed(engine, again.id, "relay")
    feed.enroll()
    again.order()
    with feed.batch() as (_, events):
        assert len(events) == 1
    remove_tenant(admin_engine, again.id)
    order = again.order()
    with feed.lease("relay-1", ttl_ms=60_000) as batch:
        assert [event.work_order_id for event in batch.events] == [order]
        batch.ack()
    with feed.batch() as (_, events):
        assert events == []
