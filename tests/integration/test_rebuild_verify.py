"""Verify names what differs from the ledger, rebuild mends it, and as_of is the fold of a prefix."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Event as Flag
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import IsolationLevel

from tests.support.calls import (
    Event,
    Rebuilt,
    Row,
    Tenant,
    append,
    as_of,
    rebuild,
    rebuild_one,
    refused,
    verify,
)
from tests.support.factories import correlation_of, new_id, wire
from tests.support.races import DEADLINE_SECONDS
from tests.support.raw import Connection, connect
from tests.support.servers import Database
from tests.support.sessions import Sessions

WHERE = "WHERE tenant_id = %s AND work_order_id = %s"


def field_set(order: str, field_key: str = "place", value: Any = "Oslo", **given: Any) -> Event:
    """Compose a FIELD_SET."""
    return {**wire("FIELD_SET", order, payload={"field_key": field_key, "value": value}), **given}


def full_order(acme: Tenant) -> str:
    """Create a work order that has something in every column of the projection that append can fill."""
    order = new_id()
    request = {"request_id": "ask-1", "target_user_id": "bob", "expires_at": "2999-01-01T00:00:00Z"}
    acme.append(
        wire("WORK_ORDER_CREATED", order, payload={"fields": {"who": "Bo"}, "requester_user_id": "alice"}),
        wire("FIELD_PROMPTED", order),
        field_set(order, "place", "Oslo"),
        wire("FIELD_CONFLICT_DETECTED", order, payload={"field_key": "who", "candidates": ["Bo", "Bob"]}),
        wire("EXTERNAL_APPROVAL_REQUESTED", order, payload=request),
        wire("EXTERNAL_APPROVAL_WAIT_NOTIFIED", order),
        wire(
            "STEP_FAILED",
            order,
            work_order_status="CONFIRM",
            step_id="s",
            step_input_hash="h",
            reason_code=7,
            turn_id=9,
        ),
    )
    return order


def versions(acme: Tenant) -> list[tuple[Any, ...]]:
    """Return where each projection row lies, and who wrote and who locked it last."""
    return acme.admin.execute(
        "SELECT work_order_id, ctid, xmin, xmax FROM os_core.work_orders_current"
        " WHERE tenant_id = %s ORDER BY 1",
        (acme.id,),
    ).fetchall()


# --- no damage


def test_verify__a_projection_that_append_wrote(acme: Tenant) -> None:
    orders = [full_order(acme) for _ in range(3)]
    assert acme.verify() == {}
    for order in (*orders, new_id()):
        assert acme.verify(order) == {}


def test_verify__an_empty_tenant(acme: Tenant) -> None:
    assert acme.verify() == {}
    assert acme.rebuild() == Rebuilt(0, 0, 0)
    assert acme.rebuild_one(new_id()) == Rebuilt(0, 0, 0)


def test_verify__in_a_read_only_transaction(sessions: Sessions, acme: Tenant) -> None:
    order, sound = full_order(acme), full_order(acme)
    acme.damage(f"UPDATE os_core.work_orders_current SET turn_id = 99 {WHERE}", acme.id, order)
    reader = sessions.open(autocommit=False)
    reader.conn.read_only = True
    assert [*verify(reader.conn, acme.id)] == [order]
    assert [*verify(reader.conn, acme.id, order)] == [order]
    assert verify(reader.conn, acme.id, sound) == {}
    state = as_of(reader.conn, acme.id, order, seq=1)
    assert state is not None
    with refused("25006"):
        rebuild(reader.conn, acme.id)


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_rebuild__of_a_sound_projection_writes_and_locks_nothing(acme: Tenant, limit: int) -> None:
    orders = [full_order(acme) for _ in range(7)]
    before = acme.everything(), versions(acme)
    assert acme.rebuild(limit) == Rebuilt(7, 49, 0)
    assert acme.rebuild_one(orders[0]) == Rebuilt(1, 7, 0)
    assert (acme.everything(), versions(acme)) == before


def test_rebuild__does_not_wait_for_appends(sessions: Sessions, acme: Tenant) -> None:
    order, new = full_order(acme), new_id()
    writer = sessions.open(autocommit=False)
    writer.append(acme.id, field_set(order, value="uncommitted"), wire("WORK_ORDER_CREATED", new))
    acme.app.execute("SET lock_timeout = '1ms'")
    assert acme.rebuild() == Rebuilt(1, 7, 0)
    assert acme.verify() == {}
    writer.conn.commit()
    assert acme.rebuild() == Rebuilt(2, 9, 0)


# --- one damage at a time

# What a superuser could make of each column: never what full_order() leaves there.
ALTERED: dict[str, str] = {
    "correlation_id": "gen_random_uuid()",
    "turn_id": "turn_id + 1",
    "work_order_status": "'DONE'",
    "last_event_id": "last_event_id - 1",
    "last_seq": "last_seq + 1",
    "last_reason_code": "last_reason_code + 1",
    "last_updated_at": "last_updated_at + interval '1 microsecond'",
    "created_at": "created_at - interval '1 microsecond'",
    "requester_user_id": "NULL",
    "step_id": "'t'",
    "step_input_hash": "NULL",
    "lease_owner_id": "'me'",
    "lease_token_hash": "'x'",
    "lease_expires_at": "'2999-01-01Z'",
    "fields_json": "'{}'",
    "asked_fields_json": "jsonb_set(asked_fields_json, '{place,attempts}', '2')",
    "resolved_fields_json": "jsonb_set(resolved_fields_json, '{place,value}', '\"Rome\"')",
    "conflicts_json": "jsonb_set(conflicts_json, '{who,asked}', 'true')",
    "prompt_dedupe_keys_json": "prompt_dedupe_keys_json || '{\"x\": 1}'",
    "external_approval_pending": "FALSE",
    "external_approval_request_id": "'ask-2'",
    "external_approval_target_user_id": "NULL",
    "external_approval_expires_at": "external_approval_expires_at + interval '1 second'",
    "external_approval_notices": "2",
    "last_state_change_seq": "1",
    "updated_bucket": "updated_bucket + interval '1 microsecond'",
    "queued_at": "queued_at + interval '1 second'",
    "steps_due_at": "NULL",
}


def test_damage__every_column_has_one(acme: Tenant) -> None:
    assert ALTERED.keys() | {"tenant_id", "work_order_id"} == acme.projection(full_order(acme)).keys()


@pytest.mark.parametrize("column", ALTERED)
def test_damage__of_a_column(acme: Tenant, column: str) -> None:
    orders = sorted(full_order(acme) for _ in range(3))
    before = acme.everything()
    for order in (orders[0], orders[2]):
        changed = acme.damage(
            f"UPDATE os_core.work_orders_current SET {column} = {ALTERED[column]} {WHERE}", acme.id, order
        )
        assert changed == 1
        assert acme.verify() == {order: f"the projection row differs in {column}"}
        assert acme.verify(order) == acme.verify()
        assert acme.verify(orders[1]) == {}
        kept = [version for version in versions(acme) if version[0] != order]
        assert (acme.rebuild() if order == orders[0] else acme.rebuild_one(order)).changed == 1
        assert acme.everything() == before
        assert [version for version in versions(acme) if version[0] != order] == kept
        assert acme.verify() == {}


def test_damage__of_every_column_at_once(acme: Tenant) -> None:
    order = full_order(acme)
    before = acme.everything()
    altered = ", ".join(f"{column} = {value}" for column, value in ALTERED.items())
    acme.damage(f"UPDATE os_core.work_orders_current SET {altered} {WHERE}", acme.id, order)
    assert acme.verify() == {order: "the projection row differs in " + ", ".join(sorted(ALTERED))}
    assert acme.rebuild() == Rebuilt(1, 7, 1)
    assert acme.everything() == before


def test_damage__a_value_that_is_only_written_differently(acme: Tenant) -> None:
    # 1 and 1.0 are the same number, and still not what the fold yields.
    order = acme.order(fields={"n": 1})
    acme.damage(
        f"UPDATE os_core.work_orders_current SET fields_json = '{{\"n\": 1.0}}' {WHERE}", acme.id, order
    )
    assert acme.verify() == {order: "the projection row differs in fields_json"}
    assert acme.rebuild().changed == 1
    assert acme.verify() == {}


def test_damage__rows_deleted(acme: Tenant) -> None:
    orders = sorted(full_order(acme) for _ in range(5))
    before = acme.everything()
    for limit in (1, 2, 100):
        acme.damage("DELETE FROM os_core.work_orders_current WHERE tenant_id = %s", acme.id)
        assert acme.verify() == dict.fromkeys(orders, "the projection row is missing")
        assert acme.rebuild(limit) == Rebuilt(5, 35, 5)
        assert acme.everything() == before
    acme.damage(f"DELETE FROM os_core.work_orders_current {WHERE}", acme.id, orders[3])
    assert acme.verify() == {orders[3]: "the projection row is missing"}
    assert acme.rebuild_one(orders[3]) == Rebuilt(1, 7, 1)
    assert acme.everything() == before


PHANTOM = """
    INSERT INTO os_core.work_orders_current
    SELECT (jsonb_populate_record(current, %s)).* FROM os_core.work_orders_current AS current
    WHERE tenant_id = %s AND work_order_id = %s
"""


def phantom(acme: Tenant, like: str, work_order_id: str, **given: Any) -> None:
    """Put a row into the projection that no ledger knows."""
    values = {"work_order_id": work_order_id, "correlation_id": str(uuid4()), **given}
    assert acme.damage(PHANTOM, psycopg.types.json.Jsonb(values), acme.id, like) == 1


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("letter", "anz")
def test_damage__a_row_without_events(acme: Tenant, limit: int, letter: str) -> None:
    orders = [f"{each}-{new_id()}" for each in "bmnpy"]
    acme.append(*(wire("WORK_ORDER_CREATED", order) for order in orders))
    before = acme.everything()
    ghost = f"{letter}-{new_id()}"
    phantom(acme, orders[0], ghost)
    assert acme.verify() == {ghost: "the projection row has no events"} == acme.verify(ghost)
    assert acme.rebuild(limit).changed == 1
    assert acme.everything() == before
    phantom(acme, orders[0], ghost)
    assert acme.rebuild_one(ghost) == Rebuilt(0, 0, 1)
    assert acme.everything() == before


def test_damage__a_tenant_with_nothing_but_a_row_without_events(acme: Tenant, sessions: Sessions) -> None:
    rival = sessions.tenant(new_id("rival"))
    order, ghost = rival.order(), new_id()
    phantom(rival, order, ghost, tenant_id=acme.id)
    assert acme.verify() == {ghost: "the projection row has no events"}
    assert rival.verify() == {}
    assert acme.rebuild().changed == 1
    assert acme.everything() == ([], {})
    assert rival.rebuild() == Rebuilt(1, 1, 0)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_damage__a_row_without_events_that_holds_a_correlation(acme: Tenant, limit: int) -> None:
    # The order whose correlation it is cannot be written while the ghost is there.
    for letters in ("ab", "ba", "az", "za"):
        order, ghost, others = f"{letters[0]}-{new_id()}", f"{letters[1]}-{new_id()}", new_id()
        acme.append(wire("WORK_ORDER_CREATED", order), wire("WORK_ORDER_CREATED", others))
        before = acme.everything()
        acme.damage(
            f"UPDATE os_core.work_orders_current SET work_order_id = '{ghost}' {WHERE}", acme.id, order
        )
        assert acme.verify() == {
            order: "the projection row is missing",
            ghost: "the projection row has no events",
        }
        acme.rebuild(limit)
        assert acme.everything() == before
        acme.damage(
            f"UPDATE os_core.work_orders_current SET work_order_id = '{ghost}' {WHERE}", acme.id, order
        )
        acme.rebuild_one(order)
        acme.rebuild_one(ghost)
        assert acme.everything() == before


# --- correlations that stand in the wrong rows


def rotate(acme: Tenant, orders: list[str]) -> None:
    """Give each of some rows the correlation of the next one."""
    with acme.admin.transaction():
        held = [acme.projection(order)["correlation_id"] for order in orders]
        for correlation_id, order in zip(
            [*(uuid4() for _ in orders), *held[1:], held[0]], orders * 2, strict=True
        ):
            acme.damage(
                f"UPDATE os_core.work_orders_current SET correlation_id = %s {WHERE}",
                correlation_id,
                acme.id,
                order,
            )


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
@pytest.mark.parametrize("rows", [(0, 1), (0, 9), (4, 5), (0, 5, 9), (9, 4, 0, 7), tuple(range(10))], ids=str)
def test_correlations__exchanged(acme: Tenant, limit: int, rows: tuple[int, ...]) -> None:
    orders = sorted(acme.order() for _ in range(10))
    before = acme.everything()
    rotate(acme, [orders[row] for row in rows])
    assert acme.verify() == {
        orders[row]: "the projection row differs in correlation_id" for row in sorted(rows)
    }
    assert acme.rebuild(limit) == Rebuilt(10, 10, len(rows))
    assert acme.everything() == before


@pytest.mark.parametrize("first", [0, 1, 2])
def test_correlations__exchanged_and_one_order_rebuilt(acme: Tenant, first: int) -> None:
    # Mending one takes mending those that stand in its way.
    orders = sorted(acme.order() for _ in range(4))
    before = acme.everything()
    rotate(acme, orders[:3])
    acme.rebuild_one(orders[first])
    assert orders[first] not in acme.verify()
    for order in orders:
        acme.rebuild_one(order)
    assert acme.everything() == before


@pytest.mark.parametrize("limit", [1, 100])
@pytest.mark.parametrize("holder_first", [False, True])
def test_correlations__of_a_missing_row_in_a_wrong_one(acme: Tenant, limit: int, holder_first: bool) -> None:
    one, two = sorted(acme.order() for _ in range(2))
    holder, missing = (one, two) if holder_first else (two, one)
    before = acme.everything()
    acme.damage(f"DELETE FROM os_core.work_orders_current {WHERE}", acme.id, missing)
    acme.damage(
        f"UPDATE os_core.work_orders_current SET correlation_id = %s {WHERE}",
        correlation_of(missing),
        acme.id,
        holder,
    )
    assert acme.verify() == {
        holder: "the projection row differs in correlation_id",
        missing: "the projection row is missing",
    }
    assert acme.rebuild(limit).changed == 2
    assert acme.everything() == before


def test_correlations__chain_of_wrong_ones(acme: Tenant) -> None:
    # Every row holds the correlation of the one before it, and the last one's is held by nobody.
    orders = sorted(acme.order() for _ in range(6))
    before = acme.everything()
    acme.damage(
        f"UPDATE os_core.work_orders_current SET correlation_id = gen_random_uuid() {WHERE}",
        acme.id,
        orders[0],
    )
    for order, held in zip(orders[1:], orders, strict=False):
        acme.damage(
            f"UPDATE os_core.work_orders_current SET correlation_id = %s {WHERE}",
            correlation_of(held),
            acme.id,
            order,
        )
    assert len(acme.verify()) == 6
    acme.rebuild_one(orders[0])
    assert orders[0] not in acme.verify()
    acme.rebuild(1)
    assert acme.everything() == before


# --- a ledger that is not whole, or more than that


def smuggle(acme: Tenant, order: str, seq: int, correlation_id: UUID | None = None) -> None:
    """Insert an event past the functions."""
    acme.damage(
        """
        INSERT INTO os_core.work_order_ledger (
          tenant_id, work_order_id, work_order_seq, correlation_id, turn_id, event_type,
          work_order_status, reason_code, payload, event_hash
        )
        VALUES (%s, %s, %s, %s, 1, 'STEP_STARTED', 'EXECUTING', 1, '{}', sha256(''))
        """,
        acme.id,
        order,
        seq,
        correlation_id or correlation_of(order),
    )


@pytest.mark.parametrize("seq", [1, 3, 6])
def test_gap__in_a_ledger_is_named_and_stays_named(acme: Tenant, seq: int) -> None:
    order, sound = full_order(acme), full_order(acme)
    with acme.admin.transaction():
        acme.admin.execute("ALTER TABLE os_core.work_order_ledger DISABLE TRIGGER USER")
        acme.damage(
            f"DELETE FROM os_core.work_order_ledger {WHERE} AND work_order_seq = {seq}", acme.id, order
        )
        acme.admin.execute("ALTER TABLE os_core.work_order_ledger ENABLE ALWAYS TRIGGER reject_mutation_row")
        acme.admin.execute(
            "ALTER TABLE os_core.work_order_ledger ENABLE ALWAYS TRIGGER reject_mutation_statement"
        )
    assert acme.verify() == {order: "work_order_seq is not 1..n"} == acme.verify(order)
    assert acme.verify(sound) == {}
    # The fold of what is left may be written; the hole stays.
    acme.rebuild()
    assert acme.rebuild().changed == 0
    assert acme.verify() == {order: "work_order_seq is not 1..n"}


def test_gap__an_event_that_leaves_some_out(acme: Tenant) -> None:
    order = acme.order()
    smuggle(acme, order, 5)
    assert acme.verify() == {order: "work_order_seq is not 1..n"}


def test_smuggled__an_event_that_the_projection_does_not_know(acme: Tenant) -> None:
    order = acme.order()
    smuggle(acme, order, 2)
    assert acme.verify()[order].startswith("the projection row differs in last_event_id, last_seq")
    assert acme.rebuild().changed == 1
    assert acme.projection(order)["work_order_status"] == "EXECUTING"
    assert acme.verify() == {}


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_smuggled__a_ledger_that_contradicts_itself_ends_a_rebuild(acme: Tenant, gone: int) -> None:
    # By their ledgers two orders have the same correlation: no projection can hold that.
    orders = sorted(acme.order() for _ in range(2))
    smuggle(acme, orders[1], 2, correlation_of(orders[0]))
    for order in orders[:gone]:
        acme.damage(f"DELETE FROM os_core.work_orders_current {WHERE}", acme.id, order)
    acme.app.execute("SET statement_timeout = '10s'")
    with refused("SL014") as refusal:
        acme.rebuild()
    assert refusal.facts["correlation_id"] == str(correlation_of(orders[0]))
    assert orders[1] in acme.verify()


# --- rebuild among others


@pytest.mark.parametrize("limit", [0, -1, 10_001, None])
def test_rebuild__limits_of_a_group(acme: Tenant, limit: int | None) -> None:
    with refused("SL001") as refusal:
        acme.app.execute("SELECT * FROM os_core.rebuild_work_orders(%s, '', %s)", (acme.id, limit))
    assert refusal.facts["field"] == "limit"


def test_rebuild__groups_go_through_all_orders_once(acme: Tenant) -> None:
    orders = sorted(acme.order() for _ in range(10))
    query = (
        "SELECT work_orders, events, changed, last_work_order_id FROM os_core.rebuild_work_orders(%s, %s, 4)"
    )
    after, seen = None, []
    for _ in range(4):
        row = acme.app.execute(query, (acme.id, after)).fetchone()
        assert row is not None
        seen.append(row)
        after = row[3]
    assert seen == [
        (4, 4, 0, orders[3]),
        (4, 4, 0, orders[7]),
        (2, 2, 0, orders[9]),
        (0, 0, 0, None),
    ]


def test_rebuild__loses_no_append(sessions: Sessions, acme: Tenant) -> None:
    orders = [acme.order() for _ in range(12)]
    enough, mended = Flag(), Flag()

    def writer(number: int) -> Callable[[Connection], int]:
        def write(conn: Connection) -> int:
            for n in range(60):
                order = orders[(n * 7 + number) % 12]
                if n % 5 == 0:
                    append(conn, acme.id, wire("WORK_ORDER_CREATED"), field_set(order, value=[number, n]))
                else:
                    append(conn, acme.id, field_set(order, value=[number, n]))
            return 60

        return write

    def rebuilder(conn: Connection) -> int:
        changed = 0
        while not enough.is_set():
            changed += rebuild(conn, acme.id, 5).changed
            for order in orders[:3]:
                changed += rebuild_one(conn, acme.id, order).changed
            if changed:
                mended.set()
        return changed

    def vandal(conn: Connection) -> int:
        # Damages what an append does not look at, so that there is always something to mend.
        damaged = 0
        while not enough.is_set():
            for order in orders:
                damaged += acme.damage(
                    f"UPDATE os_core.work_orders_current SET requester_user_id = 'nobody' {WHERE}",
                    acme.id,
                    order,
                )
        return damaged

    def verifier(conn: Connection) -> int:
        looks = 0
        while not enough.is_set():
            problems = {*verify(conn, acme.id).values()}
            assert problems <= {"the projection row differs in requester_user_id"}
            looks += 1
        return looks

    futures = sessions.start_at_once([*(writer(n) for n in range(8)), rebuilder, vandal, verifier])
    try:
        assert [future.result() for future in futures[:8]] == [60] * 8
        assert mended.wait(DEADLINE_SECONDS)
    finally:
        enough.set()
    changed, damaged, looks = (future.result() for future in futures[8:])
    assert changed > 0
    assert damaged > 0
    assert looks > 0
    acme.rebuild()
    assert acme.verify() == {}
    assert acme.unsound() == []
    assert len(acme.ledger()) == 12 + 8 * (60 + 12)


def test_rebuild__waits_for_the_append_to_what_it_mends(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()
    acme.damage(
        f"UPDATE os_core.work_orders_current SET requester_user_id = 'nobody' {WHERE}", acme.id, order
    )
    writer, mender = sessions.open(autocommit=False), sessions.open()
    writer.append(acme.id, field_set(order, value="ours"))
    future = mender.start(lambda conn: rebuild(conn, acme.id))
    assert sessions.blockers(mender) == {writer.pid}
    writer.conn.commit()
    assert future.result() == Rebuilt(1, 1, 1)
    assert acme.projection(order)["last_seq"] == 2
    assert acme.verify() == {}


def test_rebuild__append_waits_for_it(sessions: Sessions, acme: Tenant) -> None:
    order = acme.order()
    acme.damage(
        f"UPDATE os_core.work_orders_current SET requester_user_id = 'nobody' {WHERE}", acme.id, order
    )
    mender, writer = sessions.open(autocommit=False), sessions.open()
    assert rebuild_one(mender.conn, acme.id, order).changed == 1
    future = writer.start_append(acme.id, field_set(order))
    assert sessions.blockers(writer) == {mender.pid}
    mender.conn.commit()
    assert future.result()[0].work_order_seq == 2
    assert acme.verify() == {}


def test_rebuild__two_at_once(sessions: Sessions, acme: Tenant) -> None:
    orders = sorted(acme.order() for _ in range(6))
    for damage in (
        "UPDATE os_core.work_orders_current SET turn_id = 99 WHERE tenant_id = %s",
        "DELETE FROM os_core.work_orders_current WHERE tenant_id = %s",
    ):
        acme.damage(damage, acme.id)
        first, second = sessions.open(autocommit=False), sessions.open()
        assert rebuild_one(first.conn, acme.id, orders[3]).changed == 1
        future = second.start(lambda conn: rebuild(conn, acme.id))
        assert sessions.blockers(second) == {first.pid}
        first.conn.commit()
        assert future.result().work_orders == 6
        assert acme.verify() == {}


def test_rebuild__interrupted_and_run_again(sessions: Sessions, acme: Tenant) -> None:
    orders = sorted(full_order(acme) for _ in range(9))
    before = acme.everything()
    acme.damage("UPDATE os_core.work_orders_current SET turn_id = 99 WHERE tenant_id = %s", acme.id)
    # Somebody holds an order of the third group.
    holder, mender = sessions.open(autocommit=False), sessions.open()
    holder.append(acme.id, field_set(orders[7]))
    future = mender.start(lambda conn: rebuild(conn, acme.id, 3))
    assert sessions.blockers(mender) == {holder.pid}
    acme.admin.execute("SELECT pg_terminate_backend(%s)", (mender.pid,))
    assert isinstance(future.exception(), psycopg.errors.AdminShutdown)
    # The first two groups are done, of the third nothing is.
    assert [*acme.verify()] == orders[6:]
    holder.conn.rollback()
    assert acme.rebuild(3) == Rebuilt(9, 63, 3)
    assert acme.everything() == before


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_rebuild__on_a_frozen_snapshot(sessions: Sessions, acme: Tenant, level: IsolationLevel) -> None:
    orders = sorted(acme.order() for _ in range(3))
    acme.damage("UPDATE os_core.work_orders_current SET turn_id = 99 WHERE tenant_id = %s", acme.id)
    mender = sessions.open(autocommit=False, isolation=level)
    mender.conn.execute("SELECT FROM os_core.work_orders_current")
    acme.append(field_set(orders[1]))
    with refused("40001"):
        rebuild(mender.conn, acme.id)
    mender.conn.rollback()
    assert rebuild(mender.conn, acme.id).work_orders == 3
    mender.conn.commit()
    assert acme.verify() == {}


def test_rebuild__is_part_of_the_callers_transaction(sessions: Sessions, acme: Tenant) -> None:
    order, session = full_order(acme), sessions.open(autocommit=False)
    acme.damage(f"UPDATE os_core.work_orders_current SET turn_id = 99 {WHERE}", acme.id, order)
    before = acme.everything()
    assert rebuild(session.conn, acme.id).changed == 1
    assert verify(session.conn, acme.id) == {}
    session.conn.rollback()
    assert acme.everything() == before


# --- as_of


def test_as_of__every_prefix(acme: Tenant) -> None:
    order, other = new_id(), acme.order()
    states: list[Row] = []
    for event in (
        wire("WORK_ORDER_CREATED", order, payload={"fields": {"who": "Bo"}}),
        wire("FIELD_PROMPTED", order),
        field_set(order, correlation_id=str(uuid4())),
        wire("EXTERNAL_APPROVAL_REQUESTED", order),
        wire("EXTERNAL_APPROVAL_RESOLVED", order),
        wire("WORK_ORDER_CANCELED", order),
    ):
        acme.append(event)
        acme.append(field_set(other))
        states.append(acme.projection(order))
    ledger = acme.ledger(order)
    for state, event, following in zip(states, ledger, [*ledger[1:], None], strict=True):
        assert acme.as_of(order, seq=event["work_order_seq"]) == state
        assert acme.as_of(order, event_id=event["work_order_event_id"]) == state
        assert acme.as_of(order, event_id=event["work_order_event_id"] + 1) == state  # the other order's
        assert acme.as_of(order, at=event["created_at"]) == state
        if following is not None:
            assert acme.as_of(order, at=following["created_at"] - timedelta(microseconds=1)) == state
    assert acme.as_of(order, seq=10**15) == acme.as_of(order, event_id=10**15) == states[-1]
    assert acme.as_of(order, at=ledger[-1]["created_at"] + timedelta(days=999)) == states[-1]


def test_as_of__before_the_creation(acme: Tenant) -> None:
    order = acme.order()
    first = acme.ledger(order)[0]
    assert acme.as_of(order, seq=0) is None
    assert acme.as_of(order, event_id=first["work_order_event_id"] - 1) is None
    assert acme.as_of(order, at=first["created_at"] - timedelta(microseconds=1)) is None
    assert acme.as_of(new_id(), seq=1) is None


@pytest.mark.parametrize(
    "times", [{}, {"seq": 1, "event_id": 1}, {"seq": 1, "event_id": 1, "at": "now"}], ids=len
)
def test_as_of__takes_exactly_one_time(acme: Tenant, times: dict[str, Any]) -> None:
    with refused("SL001") as refusal:
        acme.as_of(acme.order(), **times)
    assert refusal.facts["field"] == "as_of"


def test_as_of__does_not_look_at_the_projection(acme: Tenant) -> None:
    order = full_order(acme)
    state = acme.projection(order)
    acme.damage(f"DELETE FROM os_core.work_orders_current {WHERE}", acme.id, order)
    assert acme.as_of(order, seq=7) == state


@pytest.mark.parametrize(
    "setting", ["TimeZone = 'Asia/Kathmandu'", "TimeZone = 'UTC'", "DateStyle = 'SQL, DMY'"]
)
def test_fold__does_not_depend_on_the_session(sessions: Sessions, acme: Tenant, setting: str) -> None:
    order, session = new_id(), sessions.open()
    session.conn.execute(f"SET {setting}".encode())
    request = {"request_id": "ask-1", "target_user_id": "bob", "expires_at": "2999-02-01T05:06:07.89+05:45"}
    events = [
        wire("WORK_ORDER_CREATED", order),
        wire("FIELD_PROMPTED", order),
        field_set(order),
        wire("EXTERNAL_APPROVAL_REQUESTED", order, payload=request),
    ]
    session.conn.execute(
        "SELECT FROM os_core.append_work_order_events(%s, %s)", (acme.id, psycopg.types.json.Jsonb(events))
    )
    _, prompted, answered, _ = (
        event["created_at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for event in acme.ledger(order)
    )
    row = acme.projection(order)
    assert row["asked_fields_json"]["place"]["asked_at"] == prompted
    assert row["resolved_fields_json"]["place"]["resolved_at"] == answered
    assert row["external_approval_expires_at"] == datetime(2999, 1, 31, 23, 21, 7, 890000, tzinfo=UTC)
    assert verify(session.conn, acme.id) == acme.verify() == {}
    assert rebuild(session.conn, acme.id).changed == acme.rebuild().changed == 0


# --- tenants


@pytest.fixture
def rival(sessions: Sessions) -> Tenant:
    """Return another tenant, that has damaged rows."""
    rival = sessions.tenant(new_id("rival"))
    orders = [full_order(rival) for _ in range(3)]
    rival.damage(f"UPDATE os_core.work_orders_current SET turn_id = 99 {WHERE}", rival.id, orders[0])
    rival.damage(f"DELETE FROM os_core.work_orders_current {WHERE}", rival.id, orders[1])
    return rival


def test_tenants__are_verified_and_rebuilt_apart(acme: Tenant, rival: Tenant) -> None:
    order = full_order(acme)
    theirs = rival.everything(), rival.verify()
    assert len(theirs[1]) == 2
    assert acme.verify() == {}
    for each in {event["work_order_id"] for event in rival.ledger()}:
        assert acme.verify(each) == {}
        assert acme.as_of(each, seq=1) is None
        assert acme.rebuild_one(each) == Rebuilt(0, 0, 0)
    assert acme.rebuild() == Rebuilt(1, 7, 0)
    acme.damage(f"UPDATE os_core.work_orders_current SET turn_id = 99 {WHERE}", acme.id, order)
    assert acme.rebuild(1) == Rebuilt(1, 7, 1)
    assert (rival.everything(), rival.verify()) == theirs
    assert rival.rebuild(1) == Rebuilt(3, 21, 2)
    assert rival.verify() == {}


CALLS: dict[str, Callable[[Connection, str], object]] = {
    "verify": verify,
    "verify one": lambda conn, tenant_id: verify(conn, tenant_id, "order"),
    "rebuild": rebuild,
    "rebuild one": lambda conn, tenant_id: rebuild_one(conn, tenant_id, "order"),
    "as_of": lambda conn, tenant_id: as_of(conn, tenant_id, "order", seq=1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_tenants__another_one_is_refused(
    acme: Tenant, rival: Tenant, call: Callable[[Connection, str], object]
) -> None:
    with refused("SL002") as refusal, acme.app.transaction():
        acme.app.execute(f"SET LOCAL selene.tenant_id = '{rival.id}'".encode())
        call(acme.app, acme.id)
    assert rival.id not in str(refusal)
    for bad in ("", "a b"):
        with refused("SL001") as refusal:
            call(acme.app, bad)
        assert refusal.facts["field"] == "tenant_id"
    with acme.app.transaction():
        call(acme.app, acme.id)
        assert acme.app.execute("SELECT current_setting('selene.tenant_id')").fetchone() == (acme.id,)


def test_tenants__a_superuser_sees_one_too(acme: Tenant, rival: Tenant) -> None:
    full_order(acme)
    assert verify(acme.admin, acme.id) == {}
    assert len(verify(acme.admin, rival.id)) == 2
    assert rebuild(acme.admin, acme.id) == Rebuilt(1, 7, 0)
    theirs = next(iter(rival.projections()))
    assert as_of(acme.admin, acme.id, theirs, seq=1) is None


def test_tenants__a_reader_may_not_rebuild(shared_database: Database, acme: Tenant) -> None:
    with connect(shared_database.readonly_url, autocommit=True) as reader:
        for call in (rebuild, lambda conn, tenant_id: rebuild_one(conn, tenant_id, "order")):
            with refused("42501"):
                call(reader, acme.id)
