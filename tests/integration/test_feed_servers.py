"""The feed beyond one server: dump and restore, a standby that is read and then promoted (contract §16)."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from selene_core import Feed, read_feed, verify_feed
from selene_core.local import LocalServer
from selene_core.local.binaries import Binaries
from selene_core.migrations import upgrade
from tests.support.calls import Row, append, refused
from tests.support.factories import wire
from tests.support.feeds import advance, drained, head, read, rows, take, value, wrong
from tests.support.races import wait_until
from tests.support.raw import connect
from tests.support.servers import SETTINGS, Database, Server, embedded_server
from tests.support.sessions import Sessions

pytestmark = pytest.mark.slow


@contextmanager
def primary(server: Server) -> Iterator[tuple[Server, Database]]:
    """Start a server of the test's own, with a migrated database."""
    with ExitStack() as stack:
        own = embedded_server(stack, server.version if server.kind == "embedded" else None)
        database = stack.enter_context(own.new_database("feed"))
        upgrade(database.admin_url)
        own.make_login_roles()
        yield own, database


def local_of(server: Server) -> LocalServer:
    assert server.local is not None
    return server.local


def half_consumed(sessions: Sessions) -> list[Row]:
    """Leave a feed in the middle: events consumed, numbered, without a position, and an open transaction."""
    acme = sessions.tenant("acme")
    order = acme.order()
    got = drained(acme)
    session = sessions.open(autocommit=False)
    append(session.conn, acme.id, wire("FIELD_SET", order))
    acme.order()
    acme.order()
    advance(acme.app, acme.id)
    got += take(acme.app, acme.id, limit=1)
    acme.order()
    return got


def check_goes_on(database: Database, got: list[Row]) -> None:
    """Check that the consumer goes on where it was, with nothing missed and nothing twice."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        late = sessions.open(autocommit=False)
        append(late.conn, acme.id, wire("WORK_ORDER_CREATED", "late"))
        for _ in range(3):
            acme.order()
            got += drained(acme)
        late.conn.commit()
        got += drained(acme)
        assert wrong(acme, got) == []
        engine = database.engine("app", poolclass=sa.NullPool)
        with Feed(engine, "acme", "billing").batch() as (_, events):
            assert events == []
        assert verify_feed(engine, "acme") == []


def test_restore__in_a_new_cluster_goes_on(server: Server) -> None:
    with primary(server) as (own, database), ExitStack() as stack:
        with closing(Sessions(database.app_url, database.admin_url)) as sessions:
            for _ in range(2000):  # so that the new cluster's xids are below those that the feed knows
                sessions.admin.execute("SELECT pg_current_xact_id()")
            got = half_consumed(sessions)
            mark = head(sessions.tenant("acme"))["mark_xid"]
            binaries = local_of(own).binaries
            source = database.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
            dumped = subprocess.run(
                [binaries / "pg_dump", "--dbname", source], capture_output=True, check=True
            ).stdout
        new = embedded_server(stack, own.version)
        restored = stack.enter_context(new.new_database("restored"))
        with new.admin() as admin:
            for role in ("owner", "app", "readonly", "feed"):
                admin.execute(f"CREATE ROLE selene_{role} NOLOGIN".encode())
        new.make_login_roles()
        goal = restored.admin_url.set(drivername="postgresql").render_as_string(hide_password=False)
        subprocess.run(
            [binaries / "psql", "-q", "-v", "ON_ERROR_STOP=1", "--dbname", goal],
            input=dumped,
            capture_output=True,
            check=True,
        )
        with connect(restored.admin_url) as conn:
            assert int(value(conn, "SELECT pg_current_xact_id()::text")) < mark
        check_goes_on(restored, got)


@contextmanager
def standby_of(own: Server) -> Iterator[LocalServer]:
    """Start a standby that follows a server of the test's own."""
    local = local_of(own)
    standby = LocalServer(Binaries(local.binaries, local.version), SETTINGS)
    try:
        place = f"host={local.socket_directory} user=postgres"
        if "port" in own.address.query:
            place += f" port={own.address.query['port']}"
        copied = standby._run(
            "pg_basebackup",
            "-D",
            str(standby.data_directory),
            "-R",
            "-c",
            "fast",
            "-X",
            "stream",
            "-d",
            place,
        )
        assert copied.wait() == 0
        standby.start()
        yield standby
    finally:
        standby._dispose()


def test_standby__is_read_and_promoted(server: Server) -> None:
    with primary(server) as (own, database), standby_of(own) as standby:
        with closing(Sessions(database.app_url, database.admin_url)) as sessions:
            got = half_consumed(sessions)
            there = read(sessions.tenant("acme").app, "acme")
            assert len(there) == 3
            here = value(sessions.admin, "SELECT pg_current_wal_lsn()")
        copy = Database(
            Server("embedded", make_url(standby.admin_url), own.version, own.release), database.name
        )
        with (
            connect(copy.admin_url, autocommit=True) as admin,
            connect(copy.readonly_url, autocommit=True) as reader,
            connect(copy.app_url, autocommit=True) as app,
        ):
            replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
            wait_until(lambda: value(admin, replayed, here), "the standby has it all")
            assert read(reader, "acme") == there
            assert rows(reader, "SELECT * FROM os_core.feed_status('acme')")[0]["feed_position"] == 2
            for call in advance, take:
                with refused("25006"):
                    call(app, "acme")
            with closing(copy):
                events = read_feed(copy.engine("readonly", poolclass=sa.NullPool), "acme", after=1)
                assert [event.feed_position for event in events] == [2, 3]
            local_of(own).stop(immediate=True)
            assert value(admin, "SELECT pg_promote()") is True
        with closing(copy):
            check_goes_on(copy, got)
        local_of(own).start()
