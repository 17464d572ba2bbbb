"""Feed and AsyncFeed, the commands, and the role of relays (contract §10, §15 and §16)."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from selene_core import (
    AsyncFeed,
    ContractViolation,
    Feed,
    FeedEvent,
    LeaseHeld,
    LeaseLost,
    WorkOrderEvent,
    append_events,
    async_feed_status,
    async_read_feed,
    async_verify_feed,
    feed_status,
    read_feed,
    tenant_scope,
    verify_feed,
)
from selene_core.cli import cli
from selene_core.cli import feed as feed_commands
from tests.integration.test_documents import guides_block
from tests.support.commands import selene_core
from tests.support.factories import created, event
from tests.support.feeds import advance, value
from tests.support.races import DEADLINE_SECONDS, backend_pid, end_session, wait_until
from tests.support.raw import connect
from tests.support.servers import Database

ORDER = "order-1"


@pytest.fixture
def engine(database: Database) -> Iterator[sa.Engine]:
    """Return an engine of the application's; five events of acme are there, and a table of the consumer's."""
    engine = database.engine("app")
    append_events(engine, "acme", [created(ORDER), *(event("FIELD_SET", ORDER) for _ in range(4))])
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute("CREATE TABLE public.seen (position bigint)")
        admin.execute("GRANT ALL ON public.seen TO selene_app")
    yield engine
    engine.dispose()


def note(conn: sa.Connection, event: FeedEvent) -> None:
    conn.execute(sa.text("INSERT INTO public.seen VALUES (:position)"), {"position": event.feed_position})


def seen(engine: sa.Engine) -> list[int]:
    with engine.connect() as conn:
        return [*conn.scalars(sa.text("SELECT position FROM public.seen ORDER BY position"))]


def test_batch__events_place_and_own_writes_are_one_transaction(engine: sa.Engine) -> None:
    feed = Feed(engine, "acme", "billing", limit=3)
    with pytest.raises(ZeroDivisionError), feed.batch() as (conn, events):  # noqa: PT012 - of the block
        note(conn, events[0])
        raise ZeroDivisionError
    assert seen(engine) == []
    for expected in [1, 2, 3], [4, 5], []:
        with feed.batch() as (conn, events):
            assert [each.feed_position for each in events] == expected
            assert all(isinstance(each, WorkOrderEvent) for each in events)
            for each in events:
                note(conn, each)
    assert seen(engine) == [1, 2, 3, 4, 5]


def test_batch__the_other_instance_gets_nothing_and_does_not_wait(engine: sa.Engine) -> None:
    first, second = Feed(engine, "acme", "billing"), Feed(engine, "acme", "billing")
    with first.batch() as (_, events):
        assert len(events) == 5
        with second.batch() as (_, others):
            assert others == []


def test_slow_consumer__holds_up_no_other(engine: sa.Engine) -> None:
    with Feed(engine, "acme", "slow").batch() as (_, events):
        assert len(events) == 5
        append_events(engine, "acme", [event("FIELD_SET", ORDER)])
        with Feed(engine, "acme", "other").batch() as (_, others):
            assert [each.feed_position for each in others] == [1, 2, 3, 4, 5, 6]


def test_follow__goes_on_until_it_is_stopped(engine: sa.Engine) -> None:
    stop = threading.Event()
    got: list[int] = []

    def consume() -> None:
        for conn, each in Feed(engine, "acme", "billing", limit=2).follow(stop=stop):
            note(conn, each)
            got.append(each.feed_position)

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        wait_until(lambda: len(got) == 5, "the events are there")
        append_events(engine, "acme", [event("FIELD_SET", ORDER)])
        wait_until(lambda: len(got) == 6, "a later one, too")
    finally:
        stop.set()
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    assert got == seen(engine) == [1, 2, 3, 4, 5, 6]


def test_follow__left_in_a_batch_it_comes_again(engine: sa.Engine) -> None:
    feed = Feed(engine, "acme", "billing", limit=2)
    for conn, each in feed.follow():
        note(conn, each)
        if each.feed_position == 3:
            break
    assert seen(engine) == [1, 2]
    got: list[int] = []
    for _, each in feed.follow(stop=lambda: len(got) >= 3):
        got.append(each.feed_position)
    assert got == [3, 4, 5]


def test_follow__killed_between_work_and_commit_comes_again(engine: sa.Engine, database: Database) -> None:
    feed = Feed(engine, "acme", "billing")
    with pytest.raises(sa.exc.DBAPIError), feed.batch() as (conn, events):  # noqa: PT012 - of the block
        for each in events:
            note(conn, each)
        end_session(database.engine("admin"), backend_pid(conn))
    assert seen(engine) == []
    with feed.batch() as (_, events):
        assert len(events) == 5


def test_lease__at_least_once_and_fenced(engine: sa.Engine) -> None:
    feed, other = Feed(engine, "acme", "relay", limit=3), Feed(engine, "acme", "relay")
    with feed.lease("relay-1", ttl_ms=60_000) as batch:
        assert [each.feed_position for each in batch.events] == [1, 2, 3]
        assert batch.fence == 1
        with pytest.raises(LeaseHeld) as caught, other.lease("relay-2", ttl_ms=60_000):
            pass
        assert (caught.value.consumer, caught.value.lease_owner_id) == ("relay", "relay-1")
        batch.ack(2)
        with pytest.raises(ContractViolation):
            batch.ack(1)
    with other.lease("relay-2", ttl_ms=1) as late:  # the first gave its lease back
        assert [each.feed_position for each in late.events] == [3, 4, 5]
        assert late.fence == 2
        assert late.lease_expires_at is not None
        clock = sa.text("SELECT clock_timestamp() > :until")
        with engine.connect() as conn:
            wait_until(lambda: conn.scalar(clock, {"until": late.lease_expires_at}), "the lease expires")
        with feed.lease("relay-1", ttl_ms=60_000) as batch:
            with pytest.raises(LeaseLost):
                late.ack()
            batch.ack()
    with other.lease("relay-2", ttl_ms=60_000) as nothing:
        assert (nothing.events, nothing.fence) == ((), None)
        nothing.ack()


def test_enroll__once_and_read_without_a_consumer(engine: sa.Engine) -> None:
    feed = Feed(engine, "acme", "billing")
    assert (feed.enroll(), feed.enroll()) == (True, False)
    assert read_feed(engine, "acme") == []  # positions are given when a consumer asks
    with feed.batch():
        pass
    assert [each.feed_position for each in read_feed(engine, "acme", after=3)] == [4, 5]
    with tenant_scope(engine, "acme") as conn:
        assert len(read_feed(conn, "acme", limit=2)) == 2
    (consumer,) = feed_status(engine, "acme")
    assert (consumer.consumer, consumer.feed_position, consumer.behind) == ("billing", 5, 0)
    assert verify_feed(engine, "acme") == []


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda engine: Feed(engine, "a b", "billing"), "tenant_id"),
        (lambda engine: Feed(engine, "acme", ""), "consumer"),
        (lambda engine: Feed(engine, "acme", "billing", limit=1001), "limit"),
        (lambda engine: read_feed(engine, "acme", after=-1), "after"),
        (lambda engine: read_feed(engine, "acme", limit=0), "limit"),
        (lambda engine: Feed(engine, "acme", "c").lease(" ", ttl_ms=1).__enter__(), "owner"),
        (lambda engine: Feed(engine, "acme", "c").lease("o", ttl_ms=0).__enter__(), "ttl_ms"),
    ],
)
def test_bad_input__names_the_field(
    engine: sa.Engine, call: Callable[[sa.Engine], object], field: str
) -> None:
    with pytest.raises(ContractViolation) as caught:
        call(engine)
    assert caught.value.field == field


def test_bad_input__of_another_kind(engine: sa.Engine) -> None:
    with engine.connect() as conn, pytest.raises(TypeError, match="Feed takes an Engine, not Connection"):
        Feed(conn, "acme", "billing")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="stop must be a function or an Event, not int"):
        next(Feed(engine, "acme", "billing").follow(stop=1))  # type: ignore[arg-type]


def run(database: Database, story: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = create_async_engine(database.app_url)
        try:
            await story(engine)
        finally:
            await engine.dispose()

    asyncio.run(main())


def test_async__does_what_its_twin_does(engine: sa.Engine, database: Database) -> None:
    async def story(async_engine: AsyncEngine) -> None:
        feed = AsyncFeed(async_engine, "acme", "billing", limit=2)
        assert await feed.enroll()
        with pytest.raises(ZeroDivisionError):
            async with feed.batch():
                raise ZeroDivisionError
        async with feed.batch() as (conn, events):
            await conn.run_sync(note, events[0])
            assert [each.feed_position for each in events] == [1, 2]
        got: list[int] = []
        async with aclosing(feed.follow()) as following:
            async for _, each in following:
                got.append(each.feed_position)
                if len(got) == 3:
                    break
        assert got == [3, 4, 5]
        stop = asyncio.Event()
        async for _, each in feed.follow(stop=stop):
            got.append(each.feed_position)
            stop.set()
        assert got == [3, 4, 5, 5]
        relay = AsyncFeed(async_engine, "acme", "relay")
        async with relay.lease("relay-1", ttl_ms=60_000) as batch:
            with pytest.raises(LeaseHeld):
                async with relay.lease("relay-2", ttl_ms=60_000):
                    pass
            await batch.ack()
        async with relay.lease("relay-2", ttl_ms=60_000) as batch:
            assert batch.events == ()
            await batch.ack()
        assert len(await async_read_feed(async_engine, "acme")) == 5
        assert await async_verify_feed(async_engine, "acme") == []
        assert [each.behind for each in await async_feed_status(async_engine, "acme")] == [0, 0]

    run(database, story)
    assert seen(engine) == [1]


# --- one relay for all tenants

LISTING = "SELECT tenant_id, consumer, feed_position FROM os_core.work_order_feed_consumers ORDER BY 1"


@pytest.fixture
def relay_url(engine: sa.Engine, database: Database) -> Iterator[sa.URL]:
    """Return the URL of a login that is in selene_feed and selene_app; three tenants have the consumer."""
    for tenant in "acme", "bolt", "core":
        Feed(engine, tenant, "relay").enroll()
    login = f"relay_{database.name}"
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'relay' IN ROLE selene_feed, selene_app".encode())
        try:
            yield database.admin_url.set(username=login, password="relay")
        finally:
            admin.execute(f"DROP OWNED BY {login}".encode())
            admin.execute(f"DROP ROLE {login}".encode())


def test_relay__lists_the_consumers_of_all_tenants_and_nothing_else(
    relay_url: sa.URL, database: Database
) -> None:
    with connect(relay_url) as relay:
        listed = relay.execute(LISTING).fetchall()
        assert listed == [("acme", "relay", 0), ("bolt", "relay", 0), ("core", "relay", 0)]
        for table in ("work_order_feed", "work_order_feed_heads", "work_order_ledger", "work_orders_current"):
            assert relay.execute(f"SELECT FROM os_core.{table}".encode()).rowcount == 0
        for column in "fence", "lease_owner_id", "lease_expires_at", "updated_at":
            with pytest.raises(psycopg.errors.InsufficientPrivilege), relay.transaction():
                relay.execute(f"SELECT {column} FROM os_core.work_order_feed_consumers".encode())
        for statement in ("UPDATE {} SET feed_position = 9", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), relay.transaction():
                relay.execute(statement.format("os_core.work_order_feed_consumers").encode())
        # Inside a tenant it sees that tenant alone.
        relay.execute("SET LOCAL selene.tenant_id = 'bolt'")
        assert relay.execute(LISTING).fetchall() == [("bolt", "relay", 0)]
    for url in database.app_url, database.readonly_url:
        with connect(url) as other:
            assert other.execute(LISTING).fetchall() == []


def test_relay__enters_the_tenants_one_at_a_time(relay_url: sa.URL, engine: sa.Engine) -> None:
    append_events(engine, "bolt", [created("bolt-order")])
    relay = sa.create_engine(relay_url)
    try:
        with relay.connect() as conn:
            tenants = [row.tenant_id for row in conn.execute(sa.text(LISTING))]
        sent = []
        for tenant in tenants:
            with Feed(relay, tenant, "relay").lease("relay-1", ttl_ms=60_000) as batch:
                sent += [(each.tenant_id, each.feed_position) for each in batch.events]
                batch.ack()
        assert sent == [*(("acme", number) for number in range(1, 6)), ("bolt", 1)]
    finally:
        relay.dispose()


# --- the commands


def command(database: Database, *arguments: str, role: Any = "app") -> subprocess.CompletedProcess[str]:
    url = database.url(role).render_as_string(hide_password=False)
    return selene_core(*arguments, SELENE_DATABASE_URL=url)


def test_tail__shows_the_events_by_position(engine: sa.Engine, database: Database) -> None:
    ran = command(database, "tail", "acme")
    assert ran.returncode == 0, ran.stderr
    assert [line.split()[0] for line in ran.stdout.splitlines()[::2]] == ["1", "2", "3", "4", "5"]
    assert "WORK_ORDER_CREATED" in ran.stdout
    assert ORDER in ran.stdout
    ran = command(database, "tail", "acme", "--after", "3", "--json")
    assert [json.loads(line)["feed_position"] for line in ran.stdout.splitlines()] == [4, 5]
    append_events(engine, "acme", [event("FIELD_SET", ORDER) for _ in range(30)])
    ran = command(database, "tail", "acme", "--json")
    assert [json.loads(line)["feed_position"] for line in ran.stdout.splitlines()] == [*range(16, 36)]
    append_events(engine, "acme", [event("FIELD_SET", ORDER)])
    ran = command(database, "tail", "acme", "--after", "34", "--json", role="readonly")
    assert [json.loads(line)["feed_position"] for line in ran.stdout.splitlines()] == [35]
    assert "cannot give positions" in ran.stderr


def test_tail__waits_for_who_gives_positions(
    engine: sa.Engine, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        connect(database.admin_url, autocommit=True) as watcher,
        connect(database.app_url) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        advance(other, "acme")
        monkeypatch.setattr(feed_commands, "_PATIENCE", 0)
        ran = command(database, "tail", "acme")
        assert (ran.returncode, ran.stdout) == (0, "")
        assert "another session is at the feed" in ran.stderr
        monkeypatch.setattr(feed_commands, "_PATIENCE", DEADLINE_SECONDS)
        asked = (
            "SELECT coalesce(max(query_start) > %s, FALSE) FROM pg_stat_activity"
            " WHERE state = 'idle' AND query LIKE '%%advance_feed%%'"
        )
        before = value(watcher, "SELECT clock_timestamp()")
        waiting = pool.submit(command, database, "tail", "acme", "--json")
        wait_until(lambda: value(watcher, asked, before), "the command has asked for positions")
        other.commit()
        ran = waiting.result()
    assert [json.loads(line)["feed_position"] for line in ran.stdout.splitlines()] == [1, 2, 3, 4, 5]
    assert ran.stderr == ""


@pytest.mark.slow
def test_tail__follows_and_ends_when_interrupted(engine: sa.Engine, database: Database) -> None:
    url = database.app_url.render_as_string(hide_password=False)
    arguments = [sys.executable, "-m", "selene_core", "tail", "acme", "--follow", "--json", "--after", "4"]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SELENE_DATABASE_URL": url},
    ) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["feed_position"] == 5
            append_events(engine, "acme", [event("FIELD_SET", ORDER)])
            assert json.loads(process.stdout.readline())["feed_position"] == 6
        finally:
            process.send_signal(2)
        assert process.wait(DEADLINE_SECONDS) == 130


def test_feed_status__shows_the_consumers(engine: sa.Engine, database: Database) -> None:
    assert "The feed has no consumers." in command(database, "feed", "status", "acme").stdout
    feed = Feed(engine, "acme", "billing", limit=2)
    with feed.batch():
        pass
    with feed.lease("relay-1", ttl_ms=60_000):
        ran = command(database, "feed", "status", "acme", role="readonly")
    assert "billing  at 2 of 5" in ran.stdout
    assert "3 behind, the first waits for" in ran.stdout
    assert "relay-1 until" in ran.stdout
    told = json.loads(command(database, "feed", "status", "acme", "--json").stdout)
    assert told["consumers"][0]["behind"] == 3


def test_feed_verify__names_what_was_lost(engine: sa.Engine, database: Database) -> None:
    with Feed(engine, "acme", "billing").batch():
        pass
    assert command(database, "feed", "verify", "acme").returncode == 0
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute("ALTER TABLE os_core.work_order_feed DISABLE TRIGGER USER")
        admin.execute("DELETE FROM os_core.work_order_feed WHERE feed_position = 5")
        admin.execute("UPDATE os_core.work_order_feed_heads SET last_position = 4, settled_event_id = 5")
        admin.execute("UPDATE os_core.work_order_feed_consumers SET feed_position = 4")
    ran = command(database, "feed", "verify", "acme")
    assert ran.returncode == 1
    assert ran.stdout == f"event 5, work order {ORDER}: the event was never given a position\n"
    told = json.loads(command(database, "feed", "verify", "acme", "--json").stdout)
    assert told["problems"][0]["work_order_event_id"] == 5


# --- the guide


def play(name: str, **given: object) -> None:
    exec(guides_block(name, "python"), given)  # noqa: S102 - as it stands in the guide


def test_guide__its_projection_is_filled(engine: sa.Engine, database: Database) -> None:
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA billing AUTHORIZATION selene_app")
        admin.execute("CREATE TABLE billing.lines (work_order_id text, event_type text)")
        admin.execute("GRANT ALL ON billing.lines TO selene_app")
        lines = "SELECT count(*) FROM billing.lines"

        def stopping() -> bool:
            return admin.execute(lines).fetchone() == (5,)

        play("feed-projection", engine=engine, text=sa.text, stopping=stopping)
        assert admin.execute(lines).fetchone() == (5,)


def test_guide__its_relay_sends_and_acknowledges(engine: sa.Engine) -> None:
    sent: list[tuple[str, int]] = []

    def send(key: str, event: FeedEvent, *, fence: int) -> None:
        sent.append((key, fence))

    for _ in range(2):
        play("feed-relay", engine=engine, send=send)
    assert sent == [(f"acme/{number}", 1) for number in range(1, 6)]


def test_guide__one_relay_serves_all_tenants(engine: sa.Engine, database: Database) -> None:
    sent: list[str] = []

    def send(key: str, event: FeedEvent, *, fence: int) -> None:
        sent.append(key)

    for tenant in "acme", "bolt":
        Feed(engine, tenant, "broker").enroll()
    append_events(engine, "bolt", [created("bolt-order")])
    login = f"relay_{database.name}"
    made = guides_block("feed-login", "sql").replace("ROLE relay ", f"ROLE {login} ")
    with connect(database.admin_url, autocommit=True) as admin:
        admin.execute(made.encode())
        try:
            relay = sa.create_engine(
                database.admin_url.set(username=login, password="change-me"), poolclass=sa.NullPool
            )
            play("feed-all", engine=relay, send=send)
        finally:
            admin.execute(f"DROP ROLE {login}".encode())
    assert sent == [*(f"acme/{number}" for number in range(1, 6)), "bolt/1"]


def test_guide__a_consumer_is_forgotten_by_the_owner(engine: sa.Engine, database: Database) -> None:
    for consumer in "billing", "other":
        Feed(engine, "acme", consumer).enroll()
    with connect(database.owner_url, autocommit=True) as owner:
        owner.execute(guides_block("feed-forget", "sql").encode())
    assert [each.consumer for each in feed_status(engine, "acme")] == ["other"]


def test_guide__tail_is_a_command() -> None:
    (line,) = guides_block("feed-tail", "sh").splitlines()
    name, *arguments = line.split()[1:]
    assert cli.commands[name].make_context(name, [*arguments, "--url", "postgresql://h/d"]).params["follow"]
