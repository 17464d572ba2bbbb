"""The feed in the database: nothing missed, nothing twice, each order in its order (contract §16)."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.calls import Row, Tenant, append, refused
from tests.support.factories import new_id, wire
from tests.support.feeds import ack, advance, drained, head, lease, problems, read, rows, take, value, wrong
from tests.support.races import DEADLINE_SECONDS, wait_until
from tests.support.raw import Connection, connect
from tests.support.servers import Database
from tests.support.sessions import Session, Sessions
from tests.support.workers import wait_past

SEQUENCE = "os_core.work_order_ledger_work_order_event_id_seq"
LANES: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "single": lambda order: [wire("WORK_ORDER_CREATED", order)],
    "batch": lambda order: [wire("WORK_ORDER_CREATED", order), field(order)],
}


def field(order: str) -> dict[str, Any]:
    return wire("FIELD_SET", order)


def begun(sessions: Sessions, isolation: IsolationLevel | None = None) -> Session:
    return sessions.open(autocommit=False, isolation=isolation)


def xid(conn: Connection) -> int:
    return int(value(conn, "SELECT pg_current_xact_id()::text"))


# --- whose id, whose xid, whose commit comes first


def test_early_xid__an_order_keeps_its_order(acme: Tenant, sessions: Sessions) -> None:
    """By xid and id the third event would come before the second."""
    order = acme.order()
    early = begun(sessions)
    xid(early.conn)
    acme.append(field(order))
    advance(acme.app, acme.id)
    append(early.conn, acme.id, field(order))
    early.conn.commit()
    assert wrong(acme, drained(acme)) == []


def test_open_transaction__an_id_that_commits_late_is_not_passed_over(
    acme: Tenant, sessions: Sessions
) -> None:
    """By id below the oldest xid, and by a plain id, that event is lost."""
    first, second = acme.order(), acme.order()
    got = drained(acme)
    late, later = begun(sessions), begun(sessions)
    assert xid(later.conn) < xid(late.conn)  # the higher xid draws the lower id
    append(late.conn, acme.id, field(first))
    append(later.conn, acme.id, field(second))
    later.conn.commit()
    more = drained(acme)
    assert [event["work_order_id"] for event in more] == [second]
    late.conn.commit()
    got += more + drained(acme)
    assert wrong(acme, got) == []


@pytest.mark.parametrize("lane", LANES)
def test_new_order__its_xid_comes_before_its_id(database: Database, lane: str) -> None:
    """Between the two the transaction would be invisible, and its event settled before it is there."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        sessions.admin.execute(
            """
            CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
              IF NEW.work_order_id = 'slow' THEN PERFORM pg_advisory_xact_lock_shared(7); END IF;
              RETURN NEW;
            END $$;
            CREATE TRIGGER hold BEFORE INSERT ON os_core.work_order_ledger
              FOR EACH ROW EXECUTE FUNCTION public.hold();
            """
        )
        barrier = sessions.open_as_superuser()
        barrier.conn.execute("SELECT pg_advisory_lock(7)")
        slow = sessions.open()
        acme.order()  # the first use of the sequence gives an xid, as every 32nd does
        got = drained(acme)
        call = slow.start_append(acme.id, *LANES[lane]("slow"))
        sessions.blockers(slow)
        for _ in range(4):  # the mark is set, and certain, and passed
            acme.order()
            got += drained(acme)
        barrier.conn.execute("SELECT pg_advisory_unlock(7)")
        call.result()
        got += drained(acme)
        assert wrong(acme, got) == []


def test_stranger__a_transaction_elsewhere_in_the_cluster_delays_nobody(
    acme: Tenant, sessions: Sessions, database: Database
) -> None:
    with connect(database.admin_url) as stranger:
        xid(stranger)
        got = []
        for _ in range(3):
            acme.order()
            got += drained(acme)
            assert len(got) == len(acme.ledger())
        assert wrong(acme, got) == []
        settled = head(acme)["settled_event_id"]
        stranger.rollback()
    assert drained(acme) == []
    assert head(acme)["settled_event_id"] >= settled


def test_stranger__a_poll_with_nothing_new_only_reads_meanwhile(
    acme: Tenant, sessions: Sessions, database: Database
) -> None:
    acme.order()
    with connect(database.admin_url) as stranger:
        xid(stranger)
        drained(acme)
        assert touched(acme, sessions) == (False, set(), 0)


def test_reader__a_long_snapshot_delays_nobody(acme: Tenant, sessions: Sessions) -> None:
    reader = begun(sessions, IsolationLevel.REPEATABLE_READ)
    reader.conn.execute("SELECT 1")
    acme.order()
    assert wrong(acme, drained(acme)) == []


@pytest.mark.parametrize("end", ["COMMIT PREPARED", "ROLLBACK PREPARED"])
def test_prepared__is_an_open_transaction(acme: Tenant, sessions: Sessions, end: str) -> None:
    if value(sessions.admin, "SHOW max_prepared_transactions") == "0":
        pytest.skip("this server takes no prepared transactions")
    name, order = new_id("gid"), acme.order()
    got = drained(acme)
    prepared = sessions.open_as_superuser()
    append(prepared.conn, acme.id, field(order))
    prepared.conn.execute(f"PREPARE TRANSACTION '{name}'".encode())
    for _ in range(3):
        acme.order()
        got += drained(acme)
    assert len(got) == len(acme.ledger())
    sessions.admin.execute(f"{end} '{name}'".encode())
    got += drained(acme)
    assert wrong(acme, got) == []


def test_rolled_back__leaves_no_hole(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order()
    session = begun(sessions)
    append(session.conn, acme.id, field(order))
    session.conn.rollback()
    append(session.conn, acme.id, field(order))
    session.conn.execute("SAVEPOINT kept")
    append(session.conn, acme.id, wire("WORK_ORDER_CREATED", new_id()))
    session.conn.execute("ROLLBACK TO SAVEPOINT kept")
    append(session.conn, acme.id, field(order))
    session.conn.commit()
    assert wrong(acme, drained(acme)) == []


def test_crosswise__appends_in_a_transaction_meet_no_new_deadlock(acme: Tenant, sessions: Sessions) -> None:
    """A counter for each tenant, in the append, would be locked in the middle of these two."""
    a, b = acme.order(), acme.order()
    first, second = begun(sessions), begun(sessions)
    second.conn.execute("SELECT FROM os_core.lock_work_order(%s, %s)", (acme.id, b))
    append(first.conn, acme.id, field(a))
    waits = first.start_append(acme.id, field(b))
    assert sessions.blockers(first) == {second.pid}
    append(second.conn, acme.id, field(b))
    second.conn.commit()
    waits.result()
    first.conn.commit()
    assert wrong(acme, drained(acme)) == []


# --- who gives positions


def test_advance__a_second_one_leaves_at_once(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    drained(acme)
    acme.order()
    one = begun(sessions)
    assert advance(one.conn, acme.id) == 1
    assert advance(acme.app, acme.id) is None
    assert take(acme.app, acme.id) == []  # no position is seen before it is certain
    one.conn.rollback()
    assert advance(acme.app, acme.id) == 1
    assert [event["feed_position"] for event in take(acme.app, acme.id)] == [2]


def test_advance__the_first_ever_holds_up_no_second_one(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    one = begun(sessions)
    assert advance(one.conn, acme.id) == 1
    other = sessions.open().start(lambda conn: advance(conn, acme.id))
    assert other.result(DEADLINE_SECONDS) is None
    one.conn.rollback()
    assert advance(acme.app, acme.id) == 1
    assert wrong(acme, drained(acme)) == []


def test_advance__in_a_transaction_with_an_xid_takes_no_mark(acme: Tenant, sessions: Sessions) -> None:
    a, b = acme.order(), acme.order()
    got = drained(acme)
    older, own, younger = begun(sessions), begun(sessions), begun(sessions)
    append(older.conn, acme.id, field(a))
    xid(own.conn)
    append(younger.conn, acme.id, wire("WORK_ORDER_CREATED", new_id()))
    acme.append(field(b))
    mark = head(acme)["mark_event_id"]
    assert advance(own.conn, acme.id) == 1
    own.conn.commit()
    assert head(acme)["mark_event_id"] == mark
    got += drained(acme)
    younger.conn.commit()
    got += drained(acme)
    older.conn.commit()
    got += drained(acme)
    assert wrong(acme, got) == []


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_advance__with_an_older_snapshot_is_40001(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    acme.order()
    drained(acme)
    old = begun(sessions, isolation)
    old.conn.execute("SELECT FROM os_core.read_feed(%s, 0, 1)", (acme.id,))
    acme.order()
    got = advance(acme.app, acme.id)
    assert got == 1
    append(old.conn, acme.id, wire("WORK_ORDER_CREATED", new_id()))
    with refused("40001"):
        advance(old.conn, acme.id)
    old.conn.rollback()
    # With a fresh snapshot it is right, its own append in the same transaction included.
    append(old.conn, acme.id, wire("WORK_ORDER_CREATED", new_id()))
    assert advance(old.conn, acme.id) == 1
    old.conn.commit()
    drained(acme)
    assert wrong(acme, read(acme.app, acme.id)) == []


@pytest.mark.parametrize("isolation", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_take__of_two_with_old_snapshots_one_moves(
    acme: Tenant, sessions: Sessions, isolation: IsolationLevel
) -> None:
    acme.order()
    advance(acme.app, acme.id)
    value(acme.app, "SELECT os_core.enroll_feed(%s, 'billing')", acme.id)
    one, other = begun(sessions, isolation), begun(sessions, isolation)
    for each in one, other:
        each.conn.execute("SELECT FROM os_core.read_feed(%s, 0, 1)", (acme.id,))
    assert len(take(one.conn, acme.id)) == 1
    one.conn.commit()
    with refused("40001"):
        take(other.conn, acme.id)


def test_advance__goes_on_below_the_limit(acme: Tenant, sessions: Sessions) -> None:
    """Also where a late event is below what was settled by a call that met its limit."""
    order = acme.order()
    late = begun(sessions)
    append(late.conn, acme.id, field(order))
    got: list[Row] = []
    for number in range(9):
        acme.order()
        if number % 2:
            advance(acme.app, acme.id, limit=1)
    late.conn.commit()
    while advance(acme.app, acme.id, limit=2):
        got += take(acme.app, acme.id)
    got += drained(acme)
    assert wrong(acme, got) == []


def test_read__pages_of_any_length_are_the_feed(acme: Tenant, sessions: Sessions) -> None:
    """Long pages are read as ranges, but where late events or erasures lie between."""
    late = begun(sessions)
    slow = acme.order()
    append(late.conn, acme.id, *(field(slow) for _ in range(3)))
    for number in range(4):
        order = acme.order()
        acme.append(*(field(order) for _ in range(29)))
        advance(acme.app, acme.id)
        if number == 1:
            late.conn.commit()
        if number == 2:
            acme.app.execute("SELECT os_core.erase_subject(%s, 'nobody', 7)", (acme.id,))
    drained(acme)
    whole = [row for after in range(head(acme)["last_position"]) for row in read(acme.app, acme.id, after, 1)]
    assert len(whole) == 4 * 30 + 5
    for limit in (2, 19, 20, 21, 30, 1000):
        for after in range(0, len(whole) + 1, 7):
            assert read(acme.app, acme.id, after, limit) == whole[after : after + limit]


def test_ids__anywhere_in_64_bits(database: Database) -> None:
    """A sequence may be set forward, as far as it goes."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        got = []
        for start in 1, 40, 1 << 47, 1 << 48, 3 << 60, 3 << 61:
            sessions.admin.execute(f"SELECT setval('{SEQUENCE}', {start})".encode())
            orders = [acme.order() for _ in range(2)]
            sessions.tenant("rival").order()
            acme.append(*[field(order) for order in orders for _ in range(3)])
            got += drained(acme)
        assert wrong(acme, got) == []
        for limit in 1, 7, 30, 1000:
            pages = [read(acme.app, acme.id, after, limit) for after in range(0, len(got), limit)]
            assert [event for page in pages for event in page] == got


def test_advance__settles_and_then_only_reads(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    drained(acme)
    wait_until(lambda: advance(acme.app, acme.id) == 0 and settled(acme), "all is settled")
    assert touched(acme, sessions) == (False, set(), 0)


def settled(tenant: Tenant) -> bool:
    newest: int = tenant.ledger()[-1]["work_order_event_id"]
    return bool(head(tenant)["settled_event_id"] == newest)


def touched(tenant: Tenant, sessions: Sessions) -> tuple[bool, set[str], int]:
    """Tell what an idle poll leaves: an xid, locks that others could meet, records in the WAL."""
    poll = begun(sessions).conn
    written = 0
    for call in ("os_core.poll_feed(%s, 'billing')", "os_core.take_feed(%s, 'billing', 10)"):
        plan = value(
            poll, f"EXPLAIN (ANALYZE, WAL, BUFFERS OFF, FORMAT JSON) SELECT * FROM {call}", tenant.id
        )
        written += plan[0]["Plan"].get("WAL Records", 0)
    locks = rows(
        poll,
        "SELECT DISTINCT concat_ws(' ', locktype, relation::regclass, mode) AS lock FROM pg_locks"
        " WHERE pid = pg_backend_pid() AND mode <> 'AccessShareLock' AND locktype <> 'virtualxid'",
    )
    has_xid = value(poll, "SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
    poll.rollback()
    return has_xid, {row["lock"] for row in locks}, written


def test_advance__a_mark_of_another_cluster_is_renewed(acme: Tenant, sessions: Sessions) -> None:
    """As after a dump and restore: its xids are not ours, and it would wait for ever."""
    order = acme.order()
    got = drained(acme)
    late = begun(sessions)
    append(late.conn, acme.id, field(order))
    sessions.admin.execute(
        "UPDATE os_core.work_order_feed_heads SET mark_xid = 4611686018427387904,"
        " settled_event_id = 0 WHERE tenant_id = %s",
        (acme.id,),
    )
    acme.order()
    got += drained(acme)
    assert head(acme)["mark_xid"] < 4611686018427387904
    late.conn.commit()
    got += drained(acme)
    assert wrong(acme, got) == []


def test_advance__refuses_a_sequence_that_was_set_back_below_its_mark(database: Database) -> None:
    """The ids of what was rolled back are free: one that is given anew would be settled while it is open."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        for _ in range(3):
            abandoned = begun(sessions)
            append(abandoned.conn, acme.id, wire("WORK_ORDER_CREATED", new_id("order")))
            abandoned.conn.rollback()
        stranger = begun(sessions)
        xid(stranger.conn)
        acme.order()
        got = drained(acme)  # numbered, marked, and not settled
        assert not settled(acme)
        sessions.admin.execute(f"SELECT setval('{SEQUENCE}', 1)".encode())
        late = begun(sessions)
        append(late.conn, acme.id, wire("WORK_ORDER_CREATED", new_id("order")))
        stranger.conn.rollback()
        with refused("55000"):
            advance(acme.app, acme.id)
        late.conn.commit()
        sessions.admin.execute(
            f"SELECT setval('{SEQUENCE}', max(work_order_event_id)) FROM os_core.work_order_ledger".encode()
        )
        got += drained(acme)
        assert wrong(acme, got) == []


def test_advance__refuses_a_sequence_that_was_set_back(database: Database) -> None:
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        acme = sessions.tenant("acme")
        for _ in range(3):
            acme.order()
        drained(acme)
        wait_until(lambda: advance(acme.app, acme.id) == 0 and settled(acme), "all is settled")
        sessions.admin.execute(f"SELECT setval('{SEQUENCE}', 1)".encode())
        with refused("55000") as refusal:
            advance(acme.app, acme.id)
        assert "is behind os_core.work_order_ledger" in refusal.message
        # As its hint says.
        sessions.admin.execute(
            f"SELECT setval('{SEQUENCE}', max(work_order_event_id)) FROM os_core.work_order_ledger".encode()
        )
        acme.order()
        drained(acme)
        assert wrong(acme, read(acme.app, acme.id)) == []


# --- consumers


def test_take__the_consumer_appends_in_its_own_transaction(acme: Tenant, sessions: Sessions) -> None:
    order = acme.order()
    advance(acme.app, acme.id)
    consumer = begun(sessions)
    got = take(consumer.conn, acme.id)
    append(consumer.conn, acme.id, field(order))
    consumer.conn.commit()
    got += drained(acme)
    assert wrong(acme, got) == []


def test_take__two_instances_exclude_each_other(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    acme.order()
    advance(acme.app, acme.id)
    value(acme.app, "SELECT os_core.enroll_feed(%s, 'billing')", acme.id)
    one = begun(sessions)
    assert len(take(one.conn, acme.id, limit=1)) == 1
    assert take(acme.app, acme.id) == []
    assert len(take(acme.app, acme.id, "other")) == 2  # another consumer is not held up
    one.conn.rollback()
    got = take(acme.app, acme.id)
    assert wrong(acme, got) == []


def test_take__killed_before_its_commit_comes_again(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    advance(acme.app, acme.id)
    consumer = begun(sessions)
    taken = take(consumer.conn, acme.id)
    sessions.admin.execute("SELECT pg_terminate_backend(%s)", (consumer.pid,))
    with pytest.raises(psycopg.Error):
        consumer.conn.commit()
    again = wait_until(lambda: take(acme.app, acme.id), "the place is free again")
    assert again == taken


def test_lease__a_late_ack_is_refused(acme: Tenant) -> None:
    for _ in range(3):
        acme.order()
    advance(acme.app, acme.id)
    first = lease(acme.app, acme.id, "relay-1", 1)
    wait_past(acme, first["lease_expires_at"])
    second = lease(acme.app, acme.id, "relay-2")
    assert second["fence"] > first["fence"]
    with refused("SL011") as refusal:
        ack(acme.app, acme.id, first["fence"], 0, 3)
    assert refusal.facts == {"consumer": "relay"}
    assert ack(acme.app, acme.id, second["fence"], 0, 2) is True
    assert ack(acme.app, acme.id, second["fence"], 0, 2) is False  # its answer was lost
    with refused("SL011"):
        ack(acme.app, acme.id, second["fence"], 1, 3)
    assert [event["feed_position"] for event in read(acme.app, acme.id, 2)] == [3]


def test_lease__excludes_owners_and_takers(acme: Tenant, sessions: Sessions) -> None:
    acme.order()
    advance(acme.app, acme.id)
    held = lease(acme.app, acme.id, "relay-1")
    assert lease(acme.app, acme.id, "relay-1")["fence"] == held["fence"]
    with refused("SL010") as refusal:
        lease(acme.app, acme.id, "relay-2")
    assert refusal.facts["lease_owner_id"] == "relay-1"
    assert refusal.facts.keys() == {"consumer", "lease_owner_id", "lease_expires_at"}
    assert take(acme.app, acme.id, "relay") == []
    release = "SELECT os_core.release_feed(%s, 'relay', %s)"
    assert value(acme.app, release, acme.id, held["fence"]) is True
    assert value(acme.app, release, acme.id, held["fence"]) is False
    taker = begun(sessions)
    assert len(take(taker.conn, acme.id, "relay")) == 1
    with refused("SL010") as refusal:
        lease(acme.app, acme.id, "relay-2")
    assert refusal.facts == {"consumer": "relay"}
    taker.conn.commit()
    assert lease(acme.app, acme.id, "relay-2")["fence"] == held["fence"] + 1


BAD = {
    "tenant": ("os_core.advance_feed('bad tenant')", "tenant_id", "ASCII letters"),
    "advance": ("os_core.advance_feed('{0}', 0)", "limit", "must be an integer from 1 to 10000"),
    "read after": ("os_core.read_feed('{0}', -1, 1)", "after", "must be an integer from 0 to 92233"),
    "read limit": ("os_core.read_feed('{0}', 0, 1001)", "limit", "must be an integer from 1 to 1000"),
    "read null": ("os_core.read_feed('{0}', NULL, 1)", "after", "must be an integer from 0"),
    "take consumer": ("os_core.take_feed('{0}', ' ', 1)", "consumer", "must be 1..128 ASCII letters"),
    "take limit": ("os_core.take_feed('{0}', 'c', NULL)", "limit", "must be an integer from 1 to 1000"),
    "enroll": ("os_core.enroll_feed('{0}', NULL)", "consumer", "must be 1..128 ASCII letters"),
    "lease consumer": ("os_core.lease_feed('{0}', '', 'o', 1)", "consumer", "must be 1..128 ASCII"),
    "lease owner": ("os_core.lease_feed('{0}', 'c', '-', 1)", "owner", "must be 1..128 ASCII letters"),
    "lease ttl": ("os_core.lease_feed('{0}', 'c', 'o', 0)", "ttl_ms", "must be an integer from 1 to 3600000"),
    "ack consumer": ("os_core.ack_feed('{0}', '', 1, 0, 0)", "consumer", "must be 1..128 ASCII letters"),
    "ack fence": ("os_core.ack_feed('{0}', 'c', 0, 0, 0)", "fence", "must be an integer from 1"),
    "ack from": ("os_core.ack_feed('{0}', 'c', 1, -1, 0)", "from", "must be an integer from 0"),
    "ack back": ("os_core.ack_feed('{0}', 'c', 1, 1, 0)", "to", "must be an integer from 1 to 1"),
    "ack ahead": ("os_core.ack_feed('{0}', 'c', 1, 0, 1)", "to", "must be an integer from 0 to 0"),
    "release consumer": ("os_core.release_feed('{0}', '', 1)", "consumer", "must be 1..128 ASCII letters"),
    "release fence": ("os_core.release_feed('{0}', 'c', NULL)", "fence", "must be an integer from 1"),
    "status": ("os_core.feed_status('{0}', '')", "consumer", "must be 1..128 ASCII letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input__names_field_and_rule(acme: Tenant, case: str) -> None:
    call, name, rule = BAD[case]
    with refused("SL001") as refusal:
        acme.app.execute(f"SELECT * FROM {call.format(acme.id)}".encode())
    assert refusal.facts["field"] == name
    assert rule in refusal.facts["rule"]


def test_status__says_who_is_behind_and_since_when(acme: Tenant) -> None:
    acme.order()
    acme.order()
    advance(acme.app, acme.id)
    take(acme.app, acme.id, "billing", 1)
    acme.order()
    first, second, _ = acme.ledger()
    lease(acme.app, acme.id)
    billing, relay = rows(acme.app, "SELECT * FROM os_core.feed_status(%s)", acme.id)
    assert (billing["feed_position"], billing["last_position"], billing["behind"]) == (1, 2, 2)
    assert billing["waiting_since"] == second["created_at"]
    assert (relay["behind"], relay["waiting_since"]) == (3, first["created_at"])
    assert relay["lease_owner_id"] == "relay-1"
    drained(acme)
    (billing,) = rows(acme.app, "SELECT * FROM os_core.feed_status(%s, 'billing')", acme.id)
    assert (billing["behind"], billing["waiting_since"]) == (0, None)


# --- verify_feed names what is wrong

DAMAGE = {
    "lost": (
        "DELETE FROM os_core.work_order_feed WHERE tenant_id = %s AND feed_position = 4",
        {
            ("the event was never given a position", None, 4),
            ("the last position is not that of the feed's head", 3, 3),
        },
    ),
    "gap": (
        "DELETE FROM os_core.work_order_feed WHERE tenant_id = %s AND feed_position = 2",
        {("the event was never given a position", None, 2), ("the position before is missing", 3, 3)},
    ),
    "order": (
        "UPDATE os_core.work_order_feed SET feed_position = 9 WHERE tenant_id = %s AND feed_position = 3;"
        "UPDATE os_core.work_order_feed SET feed_position = 3 WHERE tenant_id = %s AND feed_position = 4;"
        "UPDATE os_core.work_order_feed SET feed_position = 4 WHERE tenant_id = %s AND feed_position = 9",
        {
            ("the event is out of the order of its work order", 3, 4),
            ("the event is out of the order of its work order", 4, 3),
        },
    ),
    "event": (
        "DELETE FROM os_core.work_order_ledger WHERE tenant_id = %s AND work_order_event_id ="
        " (SELECT max(work_order_event_id) FROM os_core.work_order_ledger)",
        {("the position has no event in the ledger", 4, 4)},
    ),
    "all": (
        "DELETE FROM os_core.work_order_feed WHERE tenant_id = %s",
        {
            ("the feed has no positions, and its head has one", 4, None),
            *(("the event was never given a position", None, number) for number in (1, 2, 3, 4)),
        },
    ),
    "consumer": (
        "UPDATE os_core.work_order_feed_consumers SET feed_position = 9 WHERE tenant_id = %s",
        {("the consumer is ahead of the feed", 9, None)},
    ),
}


@pytest.fixture
def own(database: Database) -> Iterator[Sessions]:
    """Open sessions on a database of the test's own, whose ids begin at 1."""
    with closing(Sessions(database.app_url, database.admin_url)) as sessions:
        yield sessions


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify__names_what_is_wrong(own: Sessions, kind: str) -> None:
    acme = own.tenant("acme")
    acme.order()
    acme.order()
    order = acme.order()
    acme.append(field(order))
    drained(acme)
    wait_until(lambda: advance(acme.app, acme.id) == 0 and settled(acme), "all is settled")
    assert problems(acme.app, acme.id) == []
    damage, expected = DAMAGE[kind]
    acme.admin.execute("ALTER TABLE os_core.work_order_feed DISABLE TRIGGER USER")
    acme.admin.execute("ALTER TABLE os_core.work_order_ledger DISABLE TRIGGER USER")
    for statement in damage.split(";"):
        acme.damage(statement, acme.id)
    found = problems(acme.app, acme.id)
    assert {
        (each["problem"], each["feed_position"], each["work_order_event_id"]) for each in found
    } == expected
