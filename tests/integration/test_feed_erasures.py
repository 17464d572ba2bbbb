"""Erasures in the feed: they get positions as events do, and hold up nobody (contract §16 and §18)."""

from collections.abc import Iterator
from contextlib import closing
from itertools import chain

import psycopg
import pytest

from tests.integration.test_erasure import erase, field_set, personal
from tests.integration.test_feed import begun, settled, touched, xid
from tests.support.calls import Row, Tenant, append, refused
from tests.support.factories import new_id
from tests.support.feeds import advance, drained, head, problems, read, rows, take, value, wrong
from tests.support.races import DEADLINE_SECONDS, wait_until
from tests.support.raw import Connection
from tests.support.servers import Database
from tests.support.sessions import Session, Sessions


def told(got: list[Row]) -> list[str]:
    """Name what a consumer got: the subject of an erasure, else the type of the event."""
    return [
        row["payload"]["subject_id"] if row["event_type"] == "SUBJECT_ERASED" else row["event_type"]
        for row in got
    ]


def erasing(acme: Tenant, sessions: Sessions, subject: str) -> Session:
    """Open a transaction that has erased somebody."""
    session = begun(sessions)
    erase(session.conn, acme.id, subject)
    return session


def test_open_erasure__holds_up_nobody(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order(fields={"name": personal("anna", "Anna")})
    got = drained(acme)
    open_ = erasing(acme, sessions, "anna")
    acme.append(field_set(order, 1))
    assert advance(acme.app, acme.id) == 1
    more = take(acme.app, acme.id)
    assert told(more) == ["FIELD_SET"]
    other = sessions.open()
    other.start(lambda conn: erase(conn, acme.id, "bob")).result(DEADLINE_SECONDS)
    more += drained(acme)
    open_.conn.commit()
    got += more + drained(acme)
    assert told(got) == ["WORK_ORDER_CREATED", "FIELD_SET", "bob", "anna"]
    assert wrong(acme, got) == []


def test_open_erasure__is_not_passed_over(acme: Tenant, sessions: Sessions) -> None:
    """The feed may not settle what lies above it, however often it is asked."""
    acme.order()
    got = drained(acme)
    late, later = begun(sessions), begun(sessions)
    assert xid(later.conn) < xid(late.conn)  # the higher xid draws the lower id
    erase(late.conn, acme.id, "anna")
    erase(later.conn, acme.id, "bob")
    later.conn.commit()
    for _ in range(4):
        acme.order()
        got += drained(acme)
    late.conn.commit()
    for _ in range(4):
        got += drained(acme)
    assert told(got)[-1] == "anna"
    assert wrong(acme, got) == []


def test_open_erasure__beside_a_session_of_another_tenant(acme: Tenant, sessions: Sessions) -> None:
    rival = sessions.tenant(new_id("rival"))
    open_ = erasing(acme, sessions, "anna")
    rival.order()
    erase(rival.app, rival.id, "anna")
    assert wrong(rival, drained(rival)) == []
    open_.conn.commit()
    assert wrong(acme, drained(acme)) == []


def test_rolled_back_and_killed__leave_nothing(acme: Tenant, sessions: Sessions) -> None:
    undone, killed = erasing(acme, sessions, "anna"), erasing(acme, sessions, "bob")
    acme.order()
    got = drained(acme)
    undone.conn.rollback()
    sessions.admin.execute("SELECT pg_terminate_backend(%s)", (killed.pid,))
    with pytest.raises(psycopg.OperationalError):
        killed.conn.execute("SELECT 1")
    erase(acme.app, acme.id, "bob")
    acme.order()
    got += drained(acme)
    assert told(got) == ["WORK_ORDER_CREATED", "bob", "WORK_ORDER_CREATED"]
    assert wrong(acme, got) == []


@pytest.mark.parametrize("end", ["COMMIT PREPARED", "ROLLBACK PREPARED"])
def test_prepared__is_an_open_erasure(acme: Tenant, sessions: Sessions, end: str) -> None:
    if value(sessions.admin, "SHOW max_prepared_transactions") == "0":
        pytest.skip("this server takes no prepared transactions")
    name = new_id("gid")
    prepared = sessions.open_as_superuser()
    erase(prepared.conn, acme.id, "anna")
    prepared.conn.execute(f"PREPARE TRANSACTION '{name}'".encode())
    got = []
    for _ in range(3):
        acme.order()
        got += drained(acme)
    sessions.admin.execute(f"{end} '{name}'".encode())
    got += drained(acme)
    assert len(got) == 3 + end.startswith("COMMIT")
    assert wrong(acme, got) == []


def test_positions__that_are_given_back_come_again(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    got = drained(acme)
    erase(acme.app, acme.id, "anna")
    one = begun(sessions)
    assert advance(one.conn, acme.id) == 1
    assert (advance(acme.app, acme.id), take(acme.app, acme.id)) == (None, [])
    sessions.admin.execute("SELECT pg_terminate_backend(%s)", (one.pid,))
    wait_until(lambda: advance(acme.app, acme.id) == 1, "the killed one's lock is gone")
    assert wrong(acme, got + take(acme.app, acme.id)) == []


def test_at_once__each_erasure_has_one_position(acme: Tenant, sessions: Sessions) -> None:
    def eraser(number: int, conn: Connection) -> None:
        for each in range(10):
            erase(conn, acme.id, f"subject-{number}-{each}")
            advance(conn, acme.id)

    def writer(conn: Connection) -> None:
        for _ in range(20):
            append(conn, acme.id, field_set(order, 1))
            advance(conn, acme.id)

    order = acme.order()
    sessions.at_once([*(lambda conn, n=n: eraser(n, conn) for n in range(4)), writer])
    got = drained(acme)
    assert len(got) == 1 + 40 + 20
    assert wrong(acme, got) == []


@pytest.mark.parametrize("limit", [1, 2, 3, 10_000])
def test_order__after_what_was_committed_before_and_before_what_came_after(acme: Tenant, limit: int) -> None:
    order = acme.order(fields={"name": personal("anna", "Anna")})
    erase(acme.app, acme.id, "anna")
    erase(acme.app, acme.id, "bob")
    acme.append(field_set(order, personal("anna", "Anna again")))
    erase(acme.app, acme.id, "anna")
    while numbered := advance(acme.app, acme.id, limit):
        assert numbered <= limit
    got = read(acme.app, acme.id)
    assert told(got) == ["WORK_ORDER_CREATED", "anna", "bob", "FIELD_SET", "anna"]
    assert wrong(acme, got) == []
    for page in range(1, 6):
        pages = [read(acme.app, acme.id, after, page) for after in range(0, 5, page)]
        assert [*chain.from_iterable(pages)] == got


def test_idle__after_an_erasure_a_poll_only_reads(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    drained(acme)
    wait_until(lambda: advance(acme.app, acme.id) == 0 and settled(acme), "all is settled")
    erase(acme.app, acme.id, "anna")
    drained(acme)
    assert touched(acme, sessions) == (False, set(), 0)
    acme.order()
    drained(acme)
    wait_until(lambda: advance(acme.app, acme.id) == 0 and settled(acme), "all is settled")
    assert touched(acme, sessions) == (False, set(), 0)
    assert head(acme)["last_position"] == 3


def test_idle__where_there_are_erasures_alone(acme: Tenant, sessions: Sessions) -> None:
    erase(acme.app, acme.id, "anna")
    drained(acme)
    (status,) = rows(acme.app, "SELECT * FROM os_core.feed_status(%s)", acme.id)
    assert (status["behind"], status["waiting_since"]) == (0, None)
    assert touched(acme, sessions) == (False, set(), 0)
    _, erased_at, *_ = erase(acme.app, acme.id, "bob")
    (status,) = rows(acme.app, "SELECT * FROM os_core.feed_status(%s)", acme.id)
    assert (status["behind"], status["waiting_since"]) == (1, erased_at)


def test_sequence__as_its_hint_sets_it_loses_nothing(own: Sessions) -> None:
    """The ids that erasures drew are above the ledger's: an event may get one of them anew."""
    acme = own.tenant("acme")
    acme.order()
    got = drained(acme)
    erase(acme.app, acme.id, "anna")
    got += drained(acme)
    own.admin.execute(
        "SELECT setval('os_core.work_order_ledger_work_order_event_id_seq', max(work_order_event_id))"
        " FROM os_core.work_order_ledger"
    )
    acme.order()
    erase(acme.app, acme.id, "bob")
    got += drained(acme)
    assert wrong(acme, got) == []
    assert len(got) == 4


@pytest.fixture
def own(database: Database) -> Iterator[Sessions]:
    """Open sessions on a database of the test's own, whose ids begin at 1."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        yield sessions


DAMAGE: dict[str, tuple[str, set[tuple[str, int | None]]]] = {
    "none": (
        "DELETE FROM os_core.work_order_feed WHERE tenant_id = %s AND feed_position = 3",
        {("the erasure 2 was never given a position", None)},
    ),
    "two": (
        "DROP INDEX os_core.ux_work_order_feed_tenant_erasure;"
        "INSERT INTO os_core.work_order_feed VALUES (%s, 4, NULL, 1);"
        "UPDATE os_core.work_order_feed_heads SET last_position = 4",
        {("the erasure 1 has another position, too", 2), ("the erasure 1 has another position, too", 4)},
    ),
    "no record": (
        "DELETE FROM os_core.subject_erasures WHERE tenant_id = %s AND erasure_id = 1",
        {("the erasure 1 has no record", 2)},
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify__names_what_is_wrong_with_an_erasure(own: Sessions, kind: str) -> None:
    acme = own.tenant("acme")
    acme.order()
    erase(acme.app, acme.id, "anna")
    erase(acme.app, acme.id, "bob")
    drained(acme)
    assert problems(acme.app, acme.id) == []
    # Above them there is something that is settled.
    own.admin.execute("UPDATE os_core.work_order_feed_heads SET settled_event_id = 3")
    for table in "work_order_feed", "subject_erasures":
        own.admin.execute(f"ALTER TABLE os_core.{table} DISABLE TRIGGER USER".encode())
    damage, expected = DAMAGE[kind]
    for statement in damage.split(";"):
        own.admin.execute(statement.encode(), (acme.id,) if "%s" in statement else None)
    found = {(each["problem"], each["feed_position"]) for each in problems(acme.app, acme.id)}
    assert expected <= found


def test_read__a_position_without_its_event_is_an_error(own: Sessions) -> None:
    acme = own.tenant("acme")
    acme.order()
    acme.order()
    erase(acme.app, acme.id, "anna")
    drained(acme)
    for table, column in ("subject_erasures", "drawn_event_id"), ("work_order_ledger", "work_order_event_id"):
        own.admin.execute(f"ALTER TABLE os_core.{table} DISABLE TRIGGER USER".encode())
        acme.damage(f"DELETE FROM os_core.{table} WHERE tenant_id = %s AND {column} >= 2", acme.id)
        assert len(read(acme.app, acme.id, 0, 1)) == 1
        for call in "read_feed(%s, 0, 10)", "take_feed(%s, 'new', 10)":
            with refused("55000") as refusal:
                acme.app.execute(f"SELECT * FROM os_core.{call}".encode(), (acme.id,))
            assert "has a position without its event" in refusal.message
