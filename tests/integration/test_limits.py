"""Stated limits, shown. When one of them ends, ARCHITECTURE.md must say so too."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from selene_core.migrations import LOCK_KEY, MigrationLocked, upgrade
from tests.support.calls import append, refused
from tests.support.factories import new_id, wire
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.sessions import Sessions

APPEND = "SELECT os_core.append_work_order_events(%s, %s::jsonb)"


def test_owner__rewrites_the_ledger_by_ddl(database: Database) -> None:
    order = new_id()
    with connect(database.app_url, autocommit=True) as app:
        append(app, "acme", wire("WORK_ORDER_CREATED", order, reason_code=1))
    with connect(database.owner_url, autocommit=True) as owner:
        with refused("SL003"):
            owner.execute("UPDATE os_core.work_order_ledger SET reason_code = 666")
        owner.execute("ALTER TABLE os_core.work_order_ledger ALTER reason_code TYPE bigint USING 666")
    with connect(database.admin_url) as admin:
        assert admin.execute("SELECT reason_code FROM os_core.work_order_ledger").fetchall() == [(666,)]


def test_single_call__is_ended_as_deadlock_victim_beside_a_transaction_of_several(sessions: Sessions) -> None:
    first, middle, last = sorted(new_id() for _ in range(3))
    single = sessions.open()
    single.append("acme", *(wire("WORK_ORDER_CREATED", order) for order in (first, middle, last)))
    several, pause = sessions.open_as_superuser(), sessions.open(autocommit=False)
    several.conn.execute("SET deadlock_timeout = '1h'")  # so that it is never the one that looks
    several.append("acme", wire("FIELD_SET", last))
    pause.append("acme", wire("FIELD_SET", middle))

    ended = single.start_append("acme", *(wire("STATUS_CHANGED", order) for order in (first, middle, last)))
    assert sessions.blockers(single) == {pause.pid}
    goes_on = several.start_append("acme", wire("FIELD_SET", first))
    sessions.blockers(several)
    pause.conn.rollback()

    with pytest.raises(psycopg.errors.DeadlockDetected):
        ended.result()
    [appended] = goes_on.result()
    assert appended.work_order_seq == 2


def test_creation__waits_for_an_open_one_of_the_same_hand_made_id_in_another_tenant(
    sessions: Sessions,
) -> None:
    order = new_id("hand-made")
    theirs, ours = sessions.open(autocommit=False), sessions.open()
    theirs.append("globex", wire("WORK_ORDER_CREATED", order))
    waiting = ours.start_append("acme", wire("WORK_ORDER_CREATED", order))
    assert sessions.blockers(ours) == {theirs.pid}
    theirs.conn.rollback()
    [appended] = waiting.result()
    assert appended.work_order_seq == 1


def test_application__can_hold_the_lock_of_the_migrations(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELENE_MIGRATION_WAIT", "0")
    with connect(database.app_url) as app:
        app.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
        with pytest.raises(MigrationLocked):
            upgrade(database.admin_url)
    upgrade(database.admin_url)


@pytest.mark.parametrize("way", ["executemany", "pipeline"])
def test_many_statements__sent_together_are_one_transaction(sessions: Sessions, way: str) -> None:
    good, bad = new_id(), new_id()
    calls = [
        ("acme", Jsonb([wire("WORK_ORDER_CREATED", good)])),
        ("acme", Jsonb([wire("FIELD_SET", bad)])),
    ]
    conn = sessions.open().conn
    with refused("SL016"):
        if way == "executemany":
            conn.cursor().executemany(APPEND, calls)
        else:
            with conn.pipeline():
                for call in calls:
                    conn.execute(APPEND, call)
    found = sessions.admin.execute(
        "SELECT count(*) FROM os_core.work_orders_current WHERE work_order_id = %s", [good]
    ).fetchone()
    assert found == (0,)
