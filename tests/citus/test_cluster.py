"""The scale-out profile on a cluster: the story of one node, refusals, and writers with a kill and moves."""

import logging
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from selene_core import Appender, check_schema, create_selene_engine
from selene_core.migrations import citus as profile
from selene_core.schema.doctor import examine
from tests.citus.cluster import Cluster, distributed_database, move
from tests.support.calls import append, refused
from tests.support.factories import created, event, new_id, wire
from tests.support.feeds import advance, problems
from tests.support.raw import connect
from tests.support.servers import LOGIN_ROLES, Database
from tests.support.writes import STORY, known, run

pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]

figures = logging.getLogger(__name__)  # --log-cli-level=info shows them

SECONDS = float(os.environ.get("SELENE_TEST_CITUS_SECONDS", "20"))
KILL = os.environ.get("SELENE_TEST_CITUS_KILL")
"""A command that kills a worker with SIGKILL and starts it again; without it the writers meet moves only."""

RETRIED = ("08", "57", "40", "53", "SL006", "XX000")
WRITERS = 8
TENANTS = [f"tenant-{number}" for number in range(16)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a distributed database."""
    with distributed_database() as found:
        yield found


def told(rows: list[tuple[Any, ...]]) -> list[list[object]]:
    """Leave out what differs from one run to the next: ids, times, hashes, random values."""
    return [
        [
            value if isinstance(value, (bool, str, type(None))) and len(str(value)) < 60 else type(value)
            for value in row
        ]
        for row in rows
    ]


def test_story__is_told_as_on_one_node(cluster: Cluster, database: Database) -> None:
    tenant_id = "acme"
    one = connect(database.server.url_for(LOGIN_ROLES["app"], database.name), autocommit=True)
    with (
        closing(one),
        cluster.app() as many,
        connect(database.admin_url, autocommit=True) as admin,
        cluster.connect() as other,
    ):
        for name, call in STORY.items():
            expected = told(run(one, call, tenant_id, known(admin, tenant_id)))
            assert told(run(many, call, tenant_id, known(other, tenant_id))) == expected, name


def test_profile__is_as_it_must_be(cluster: Cluster) -> None:
    assert profile.check(cluster.url) == []
    assert profile.upgrade(cluster.url) == []
    engine = create_selene_engine(cluster.url)
    with engine.connect() as conn:
        assert examine(conn).faults == ()
    engine.dispose()
    engine = create_selene_engine(cluster.app_url)
    assert check_schema(engine)
    engine.dispose()


def test_check__names_the_node_and_what_is_wrong_there(cluster: Cluster) -> None:
    name = "os_core.register_identity(text,text,text,text,text)"
    with cluster.connect(1) as conn:
        conn.execute("SET citus.enable_ddl_propagation = off")
        conn.execute(f"GRANT EXECUTE ON FUNCTION {name} TO PUBLIC".encode())
        try:
            (problem,) = profile.check(cluster.url)
        finally:
            conn.execute(f"REVOKE EXECUTE ON FUNCTION {name} FROM PUBLIC".encode())
    host, port = cluster.nodes[1]
    assert problem == f"node {host}:{port}: PUBLIC may execute {name}"


def test_call__that_stays_on_the_coordinator_refuses(cluster: Cluster) -> None:
    with (
        cluster.app() as conn,
        pytest.raises(psycopg.errors.FeatureNotSupported, match="was not sent to the node"),
    ):
        conn.execute("SELECT (SELECT count(*) FROM os_core.verify_work_orders('acme'))")


def test_batch__replays_what_is_there_and_refuses_a_taken_thread(cluster: Cluster) -> None:
    order, thread = new_id(), str(uuid4())
    both = [
        wire("WORK_ORDER_CREATED", order, correlation_id=thread, idempotency_key="created"),
        wire("FIELD_SET", order, correlation_id=thread, idempotency_key="set"),
    ]
    with cluster.app() as conn:
        first = append(conn, "batches", *both)
        again = append(conn, "batches", *both, wire("FIELD_SET", order, correlation_id=thread))
        assert [each.replayed for each in again] == [True, True, False]
        assert [each.work_order_event_id for each in again[:2]] == [
            each.work_order_event_id for each in first
        ]
        with refused("SL014"):
            append(conn, "batches", wire("WORK_ORDER_CREATED", new_id(), correlation_id=thread))
        assert conn.execute("SELECT * FROM os_core.verify_work_orders('batches')").fetchall() == []


def test_appender__appends_as_on_one_node(cluster: Cluster) -> None:
    order = new_id()
    engine = create_selene_engine(cluster.app_url)
    with Appender(engine) as appender:
        made = [appender.append("appender", each) for each in (created(order), event("FIELD_SET", order))]
    engine.dispose()
    assert [each.work_order_seq for each in made] == [1, 2]


def test_writers__lose_and_double_nothing(cluster: Cluster) -> None:
    stop = threading.Event()
    acknowledged: list[list[tuple[str, str, str, int, int]]] = [[] for _ in range(WRITERS)]
    failures: list[BaseException] = []
    errors: Counter[str] = Counter()

    def write(writer: int) -> None:
        conn: psycopg.Connection[Any] | None = None
        number = 0
        try:
            while not stop.is_set():
                tenant_id = TENANTS[(writer + number) % len(TENANTS)]
                order = f"{tenant_id}-{number % 4}"
                key = f"{writer}-{number}"
                event = wire("FIELD_SET", order, idempotency_key=key)
                try:
                    conn = conn or cluster.app()
                    rows = conn.execute(
                        "SELECT * FROM os_core.append_work_order_events(%s, %s)", (tenant_id, Jsonb([event]))
                    ).fetchall()
                except psycopg.Error as exc:
                    state = exc.sqlstate or "08"
                    errors[state] += 1
                    if not state.startswith(RETRIED):
                        raise
                    if conn is not None and conn.broken:
                        conn = None
                    stop.wait(0.1)
                    continue
                acknowledged[writer].append((tenant_id, order, key, rows[0][0], rows[0][1]))
                number += 1
        except BaseException as exc:
            failures.append(exc)
        finally:
            if conn is not None:
                conn.close()

    with cluster.app() as conn:
        for tenant_id in TENANTS:
            for number in range(4):
                order = f"{tenant_id}-{number}"
                created = wire("WORK_ORDER_CREATED", order, correlation_id=str(UUID(int=number + 1)))
                conn.execute(
                    "SELECT * FROM os_core.append_work_order_events(%s, %s)", (tenant_id, Jsonb([created]))
                )

    def feed() -> None:
        number = 0
        conn: psycopg.Connection[Any] | None = None
        try:
            while not stop.is_set():
                number += 1
                try:
                    conn = conn or cluster.app()
                    advance(conn, TENANTS[number % len(TENANTS)])
                except psycopg.Error as exc:
                    state = exc.sqlstate or "08"
                    errors[state] += 1
                    if not state.startswith(RETRIED):
                        raise
                    if conn is not None and conn.broken:
                        conn = None
                    stop.wait(0.1)
        except BaseException as exc:
            failures.append(exc)
        finally:
            if conn is not None:
                conn.close()

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
    threads.append(threading.Thread(target=feed))
    for thread in threads:
        thread.start()
    try:
        moves = meet(cluster, time.monotonic() + SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    figures.info("%s acknowledged; moves %s; errors %s", sum(map(len, acknowledged)), moves, dict(errors))
    assert failures == []
    judge(cluster, [each for writer in acknowledged for each in writer])


def meet(cluster: Cluster, until: float) -> int:
    """Move parts of the tables while the writers write, and kill a worker if there is a command."""
    killed = KILL is None
    moves = 0
    while time.monotonic() < until:
        with cluster.connect() as conn:
            move(conn, TENANTS, moves)
        moves += 1
        if not killed and moves > 1:
            subprocess.run(["/bin/sh", "-c", str(KILL)], check=True)
            killed = True
            time.sleep(2)  # until the worker takes connections again: what writers meet is the test
    return moves


def judge(cluster: Cluster, acknowledged: list[tuple[str, str, str, int, int]]) -> None:
    """Compare the rows, read by a superuser, with what the writers were told."""
    with cluster.connect() as conn:
        rows = conn.execute(
            "SELECT tenant_id, work_order_id, idempotency_key, work_order_event_id, work_order_seq"
            " FROM os_core.work_order_ledger WHERE tenant_id LIKE 'tenant-%'"
        ).fetchall()
        states = dict(
            conn.execute(
                "SELECT work_order_id, last_seq FROM os_core.work_orders_current"
                " WHERE tenant_id LIKE 'tenant-%'"
            ).fetchall()
        )
    assert len(acknowledged) > 100
    assert {*acknowledged} <= {*rows}, "an acknowledged event is lost or another"
    keys = Counter((tenant_id, order, key) for tenant_id, order, key, _, _ in rows if key)
    assert max(keys.values()) == 1, "an event is there twice"
    seqs: dict[str, list[int]] = {}
    for _, order, _, _, seq in rows:
        seqs.setdefault(order, []).append(seq)
    assert all(sorted(found) == [*range(1, len(found) + 1)] for found in seqs.values()), "a gap or a fork"
    assert states == {order: len(found) for order, found in seqs.items()}
    with cluster.app() as conn:
        for tenant_id in TENANTS:
            assert conn.execute("SELECT * FROM os_core.verify_work_orders(%s)", (tenant_id,)).fetchall() == []
            assert conn.execute("SELECT * FROM os_core.verify_chain(%s)", (tenant_id,)).fetchall() == []
            while advance(conn, tenant_id):
                pass
            assert problems(conn, tenant_id) == []
            with conn.transaction():
                conn.execute(f"SET LOCAL selene.tenant_id = '{tenant_id}'".encode())
                seen = conn.execute(
                    "SELECT DISTINCT tenant_id FROM os_core.work_order_ledger WHERE tenant_id = %s",
                    (tenant_id,),
                )
                assert seen.fetchall() == [(tenant_id,)]
            assert {
                found for (found,) in conn.execute("SELECT DISTINCT tenant_id FROM os_core.work_order_ledger")
            } == set()
    with cluster.connect() as conn:
        fed = conn.execute(
            "SELECT tenant_id, work_order_id, work_order_seq, feed_position FROM os_core.work_order_feed"
            " JOIN os_core.work_order_ledger USING (tenant_id, work_order_event_id)"
            " WHERE tenant_id LIKE 'tenant-%' ORDER BY tenant_id, feed_position"
        ).fetchall()
    assert len(fed) == len(rows), "the feed has no place for an event, or two"
    told_of: dict[str, list[int]] = {}
    for _, order, seq, _ in fed:
        told_of.setdefault(order, []).append(seq)
    assert told_of == {order: sorted(found) for order, found in seqs.items()}, "the feed has another order"
