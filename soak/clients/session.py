"""A client's connection: every call is recorded before it is sent, and its answer after it has come."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from soak.history import Recorder

AUTOCOMMIT = "autocommit"
ISOLATIONS = ("READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")

# Each statement as a service in any language sends it.
STATEMENTS: Mapping[str, str] = {
    "append": "SELECT * FROM os_core.append_work_order_events(%(tenant)s, %(events)s)",
    "cancel": "SELECT * FROM os_core.cancel_work_order("
    "%(tenant)s, %(work_order_id)s, %(reason_code)s, %(idempotency_key)s)",
    "notify_wait": "SELECT os_core.notify_wait(%(tenant)s, %(work_order_id)s, NULL, %(reason_code)s)",
    "acquire": "SELECT * FROM os_core.acquire_lease("
    "%(tenant)s, %(work_order_id)s, %(owner)s, %(token)s, %(ttl_ms)s, %(idempotency_key)s)",
    "renew": "SELECT * FROM os_core.renew_lease(%(tenant)s, %(work_order_id)s, %(token)s, %(ttl_ms)s)",
    "release": "SELECT os_core.release_lease(%(tenant)s, %(work_order_id)s, %(token)s)",
    "start": "SELECT * FROM os_core.start_step_attempt(%(tenant)s, %(work_order_id)s, %(step_id)s,"
    " %(timeout_ms)s, %(max_retries)s, %(retry_backoff_ms)s, %(idempotency_key)s, %(token)s)",
    "finish": "SELECT * FROM os_core.finish_step_attempt(%(tenant)s, %(step_attempt_id)s, %(outcome)s,"
    " %(reason_code)s, %(retryable)s, %(token)s, %(idempotency_key)s)",
    "get": "SELECT * FROM os_core.work_orders_current WHERE work_order_id = %(work_order_id)s",
    "events": "SELECT work_order_event_id, work_order_seq FROM os_core.work_order_ledger"
    " WHERE work_order_id = %(work_order_id)s ORDER BY work_order_seq",
    "claim": "SELECT * FROM os_core.claim_work_order("
    "%(tenant)s, %(owner)s, %(token)s, %(ttl_ms)s, %(statuses)s)",
    "ask": "SELECT * FROM os_core.ask_field(%(tenant)s, %(work_order_id)s, %(required_fields)s, '{}',"
    " NULL, %(reason_code)s, %(idempotency_key)s)",
    "advance": "SELECT os_core.advance_feed(%(tenant)s, %(limit)s)",
    # In one transaction with the consumer's own table: exactly once.
    "consume": "INSERT INTO public.soak_consumed"
    " SELECT tenant_id, %(consumer)s, feed_position, work_order_event_id"
    " FROM os_core.take_feed(%(tenant)s, %(consumer)s, %(limit)s)",
    "identity": "SELECT * FROM os_core.register_identity(%(tenant)s, %(user_id)s)",
    "device": "SELECT * FROM os_core.register_device(%(tenant)s, %(user_id)s, %(device_id)s, 'speaker')",
    "session": "SELECT * FROM os_core.open_session(%(tenant)s, %(session_id)s, %(user_id)s, %(device_id)s)",
    "turn": "SELECT * FROM conversation.append_turn(%(tenant)s, %(correlation_id)s, %(turn_id)s, %(user_id)s,"
    " 'USER', 'TYPED_TEXT', %(text)s, 'PUBLIC_CHAT', %(session_id)s, %(device_id)s, %(idempotency_key)s)",
    "tombstone": "SELECT * FROM conversation.tombstone_turn(%(tenant)s, %(correlation_id)s,"
    " %(conversation_turn_id)s, %(reason_code)s, NULL, %(idempotency_key)s)",
    "turns": "SELECT * FROM conversation.read_turns(%(tenant)s, %(correlation_id)s, 0, 1000)",
}
# They need the tenant of the transaction, which the functions enter by themselves.
READS = frozenset({"get", "events"})
PAUSE_SECONDS = 0.05


class Refused(Exception):
    """The server has answered with an error: nothing of the call is there."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Lost(Exception):
    """The connection is gone; only the server knows what has become of the call."""


class Session:
    """One connection at a time, to the server or to a pooler in front of it."""

    def __init__(
        self, dsn: str, recorder: Recorder, luck: random.Random, stopped: Callable[[], bool]
    ) -> None:
        self._dsn, self._recorder, self._luck, self._stopped = dsn, recorder, luck, stopped
        self._conn: psycopg.Connection[dict[str, Any]] | None = None

    def close(self) -> None:
        """Leave the connection."""
        if self._conn is not None:
            self._conn.close()

    def alone(self, tenant: str, op: str, **args: Any) -> list[dict[str, Any]]:
        """Send one call in autocommit."""
        conn = self._connected()
        self._recorder.begin(tenant=tenant, isolation=AUTOCOMMIT)
        return _Block(conn, self._recorder, tenant, alone=True).call(op, **args)

    @contextmanager
    def transaction(self, tenant: str, isolation: str, *, undo: bool = False) -> Iterator["_Block"]:
        """Send several calls in one transaction; it is committed unless `undo`, or one of them is refused."""
        conn = self._connected()
        self._recorder.begin(tenant=tenant, isolation=isolation)
        block = _Block(conn, self._recorder, tenant)
        try:
            block.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            block.execute(f"SET LOCAL selene.tenant_id = '{tenant}'")
            yield block
        except Refused:
            block.rollback()
            raise
        if undo:
            block.rollback()
        else:
            block.commit()

    def _connected(self) -> psycopg.Connection[dict[str, Any]]:
        while self._conn is None or self._conn.closed or self._conn.broken:
            if self._stopped():
                raise Lost
            with suppress(psycopg.Error):
                # Prepared statements would stay behind with the pooler's connection.
                self._conn = psycopg.connect(
                    self._dsn,
                    autocommit=True,
                    prepare_threshold=None,
                    row_factory=dict_row,
                    connect_timeout=5,
                )
                break
            time.sleep(PAUSE_SECONDS * (1 + self._luck.random()))  # until the server is there again
        return self._conn


class _Block:
    """The calls of one transaction."""

    def __init__(
        self,
        conn: psycopg.Connection[dict[str, Any]],
        recorder: Recorder,
        tenant: str,
        *,
        alone: bool = False,
    ) -> None:
        self._conn, self._recorder, self._tenant, self._alone = conn, recorder, tenant, alone
        self._step = 0

    def call(self, op: str, **args: Any) -> list[dict[str, Any]]:
        """Send one statement; return its rows."""
        step, self._step = self._step, self._step + 1
        self._recorder.add("call", s=step, op=op, args=args)
        values = {"tenant": self._tenant, **args}
        if "events" in values:
            values["events"] = Jsonb(values["events"])
        rows: list[dict[str, Any]] = self._ask(STATEMENTS[op], values, s=step)
        self._recorder.add("answer", s=step, rows=rows)
        return rows

    def execute(self, statement: str) -> None:
        """Send a statement that writes nothing."""
        self._ask(statement, None)

    @contextmanager
    def savepoint(self, *, undo: bool) -> Iterator[None]:
        """Undo what is called inside if it is refused, or anyway."""
        step = self._step
        self.execute("SAVEPOINT here")
        try:
            yield
        except Refused:
            undo = True
        if undo:
            self.execute("ROLLBACK TO SAVEPOINT here")
            self._recorder.add("undone", **{"from": step})

    def commit(self) -> None:
        """Commit, and believe nothing but the server's word."""
        self._recorder.add("commit")
        if self._ask("COMMIT", None, whole=True) is None:
            self._recorder.add("refused", sqlstate="25P02")
            raise Refused("25P02")
        self._recorder.add("committed")

    def rollback(self) -> None:
        """Roll back; if the connection is gone, the server does it."""
        self._recorder.add("rollback")
        with suppress(psycopg.Error):
            self._conn.execute("ROLLBACK")

    def _ask(self, statement: str, values: Any, *, whole: bool = False, **place: int) -> Any:
        try:
            cursor = self._conn.execute(statement.encode(), values)
            if whole:
                return cursor.statusmessage if cursor.statusmessage == "COMMIT" else None
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as exc:
            if _is_gone(exc) or self._conn.closed or self._conn.broken:
                self._recorder.add("lost", **place, says=str(exc)[:200])
                self._conn.close()
                raise Lost from exc
            sqlstate = exc.sqlstate or ""
            if place or whole:
                self._recorder.add("refused", **place, sqlstate=sqlstate, says=str(exc)[:200])
            raise Refused(sqlstate) from exc


def _is_gone(exc: psycopg.Error) -> bool:
    """Whether the server, or a pooler, has ended the session: then an error is no answer to the call."""
    sqlstate = exc.sqlstate
    return (
        sqlstate is None
        or sqlstate.startswith(("08", "57P"))
        or exc.diag.severity_nonlocalized in ("FATAL", "PANIC")
    )
