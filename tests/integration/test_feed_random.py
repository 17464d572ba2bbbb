"""The feed amid random transactions: early xids, savepoints, rollbacks, prepared ones, kills (contract §16).

The steps of all sessions are taken one after the other, so each history can be played again. Who would wait
for another's lock is left out. What is right is asked of the ledger alone.
"""

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel

from tests.support.calls import Row, append
from tests.support.factories import new_id, wire
from tests.support.feeds import advance, drained, take, value, wrong
from tests.support.raw import Connection, connect
from tests.support.servers import Database
from tests.support.sessions import Sessions

WRITERS: Final = 4
ORDERS: Final = 5
LEVELS = (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE)

STEPS = {
    "append": 5,
    "batch": 2,
    "create": 2,
    "xid": 1,
    "savepoint": 1,
    "undo": 1,
    "commit": 4,
    "rollback": 1,
    "prepare": 1,
    "kill": 1,
    "consume": 3,
    "crash": 1,
    "number": 2,
}
STEP = st.tuples(
    st.sampled_from([name for name, weight in STEPS.items() for _ in range(weight)]),
    st.integers(0, WRITERS - 1),
    st.integers(0, ORDERS - 1),
)


class History:
    """A tenant, its writers' open transactions, and what its consumer has committed."""

    def __init__(self, sessions: Sessions, database: Database, level: IsolationLevel) -> None:
        self.sessions = sessions
        self.database = database
        self.level = level
        self.acme = sessions.tenant(new_id("acme"))
        self.orders = [self.acme.order() for _ in range(ORDERS)]
        self.writers = [self._connect() for _ in range(WRITERS)]
        self.has_savepoint = [False] * WRITERS
        self.holds: dict[str, object] = {}
        self.prepared: list[str] = []
        self.got: list[Row] = []
        self.may_prepare = value(sessions.admin, "SHOW max_prepared_transactions") != "0"

    def _connect(self) -> Connection:
        # The superuser's: a prepared transaction must not go through a pooler.
        conn = connect(self.database.admin_url)
        conn.isolation_level = self.level
        return conn

    def take_step(self, name: str, writer: int, order: int) -> None:
        """Carry out a step; a transaction that is refused is rolled back."""
        step: Callable[[int, str], None] = getattr(self, f"do_{name}")
        try:
            step(writer, self.orders[order])
        except psycopg.errors.SerializationFailure:
            self.do_rollback(writer, "")

    def _is_free(self, writer: int, order: str) -> bool:
        return self.holds.setdefault(order, writer) == writer

    def do_append(self, writer: int, order: str) -> None:
        if self._is_free(writer, order):
            append(self.writers[writer], self.acme.id, wire("FIELD_SET", order))

    def do_batch(self, writer: int, order: str) -> None:
        if self._is_free(writer, order):
            fresh = new_id("order")
            events = [wire("FIELD_SET", order), wire("WORK_ORDER_CREATED", fresh), wire("FIELD_SET", fresh)]
            append(self.writers[writer], self.acme.id, *events)

    def do_create(self, writer: int, _order: str) -> None:
        append(self.writers[writer], self.acme.id, wire("WORK_ORDER_CREATED", new_id("order")))

    def do_xid(self, writer: int, _order: str) -> None:
        self.writers[writer].execute("SELECT pg_current_xact_id()")

    def do_savepoint(self, writer: int, _order: str) -> None:
        self.writers[writer].execute("SAVEPOINT kept")
        self.has_savepoint[writer] = True

    def do_undo(self, writer: int, _order: str) -> None:
        if self.has_savepoint[writer]:
            self.writers[writer].execute("ROLLBACK TO SAVEPOINT kept")

    def do_commit(self, writer: int, _order: str) -> None:
        self.writers[writer].commit()
        self._ended(writer)

    def do_rollback(self, writer: int, _order: str) -> None:
        self.writers[writer].rollback()
        self._ended(writer)

    def do_prepare(self, writer: int, _order: str) -> None:
        conn = self.writers[writer]
        if not self.may_prepare or conn.info.transaction_status != psycopg.pq.TransactionStatus.INTRANS:
            return
        name = new_id("gid")
        conn.execute(f"PREPARE TRANSACTION '{name}'".encode())
        conn.rollback()
        self.prepared.append(name)
        self.holds = {order: name if held == writer else held for order, held in self.holds.items()}
        self._ended(writer)

    def do_kill(self, writer: int, _order: str) -> None:
        pid = self.writers[writer].info.backend_pid
        self.sessions.admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
        self.sessions.wait_until_gone(pid)
        with suppress(psycopg.Error):
            self.writers[writer].close()
        self.writers[writer] = self._connect()
        self._ended(writer)

    def do_number(self, writer: int, _order: str) -> None:
        """Give positions in a writer's transaction, which may have an xid; then end it."""
        advance(self.writers[writer], self.acme.id, limit=2)
        self.do_rollback(writer, "") if writer % 2 else self.do_commit(writer, "")

    def do_consume(self, writer: int, _order: str) -> None:
        advance(self.acme.app, self.acme.id, limit=writer + 1)
        self.got += take(self.acme.app, self.acme.id, limit=3)

    def do_crash(self, _writer: int, _order: str) -> None:
        consumer = self.sessions.open(autocommit=False)
        take(consumer.conn, self.acme.id, limit=3)
        pid = consumer.pid
        consumer.conn.close()
        self.sessions.wait_until_gone(pid)

    def end(self) -> None:
        """End all transactions, and let the consumer have what is left."""
        for number, name in enumerate(self.prepared):
            verb = "ROLLBACK" if number % 2 else "COMMIT"
            self.sessions.admin.execute(f"{verb} PREPARED '{name}'".encode())
        for conn in self.writers:
            with suppress(psycopg.errors.SerializationFailure):
                conn.commit()
            conn.close()
        self.got += drained(self.acme)

    def _ended(self, writer: int) -> None:
        self.has_savepoint[writer] = False
        self.holds = {order: held for order, held in self.holds.items() if held != writer}


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a history takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, min_size=20, max_size=80))
def test_random__nothing_is_missed_nor_twice_nor_out_of_order(
    shared_database: Database, level: IsolationLevel, steps: list[Any]
) -> None:
    with closing(Sessions(shared_database.app_url, shared_database.admin_url)) as sessions:
        history = History(sessions, shared_database, level)
        try:
            for step in steps:
                history.take_step(*step)
        finally:
            history.end()
        assert wrong(history.acme, history.got) == []
