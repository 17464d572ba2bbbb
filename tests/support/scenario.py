"""One story with every kind of event and every table in it, to be told under any settings."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from selene_core import (
    ConversationRepository,
    IdentityRepository,
    LeaseRepository,
    StepAttemptRepository,
    WorkOrderRepository,
    tenant_scope,
)
from selene_core.store.tables import METADATA
from tests.support.factories import correlation_of, wire
from tests.support.raw import Connection
from tests.support.writes import thread_of

HOUR: Final = timedelta(hours=1)
LEASE: Final = timedelta(minutes=10)
RENEWED: Final = timedelta(minutes=20)
BACKOFF: Final = timedelta(minutes=30)
# What lies this far from the clock while the story was told is written as its name.
_OFFSETS: Final = {
    "now": timedelta(0),
    "in an hour": HOUR,
    "an hour ago": -HOUR,
    "lease": LEASE,
    "renewed": RENEWED,
    "backoff": BACKOFF,
}
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_SERIAL: Final = re.compile(
    r'("(?:work_order_event_id|drawn_event_id|last_event_id|step_attempt_id|conversation_turn_id'
    r'|tombstone_of_conversation_turn_id)": )(\d+)'
)
_SERIALS: Final = {
    "turn": "conversation.conversation_ledger",
    "attempt": "os_core.work_order_step_attempts",
    "event": "os_core.work_order_ledger",
}
# What is random, or comes from it: the salt of a text, and its hash. And five minutes of the clock.
_RANDOM: Final = re.compile(
    r'("(?:lease_id|event_hash|salt|text_hash|value_ref|\$ref|updated_bucket)": )"[^"]*"|("erasure_id": )\d+'
)
ODD: Final = {
    "text": "back\\slash 'quote' \"double\" é",
    "numbers": [0.1, 1.5e-300, 12345678901234567, -0.5, 1234567.8901234567],
    "NULL": None,
    "f": False,
}


@dataclass(frozen=True, slots=True)
class Told:
    """What a story left: the answers to its calls, and the rows in all tables."""

    answers: list[str]
    rows: dict[str, list[str]]


class Story:
    """Tell the story in a session, for a tenant of its own; a superuser's plain session looks at it."""

    def __init__(self, conn: Connection, plain: Connection, tenant_id: str) -> None:
        self._conn, self._plain, self._tenant = conn, plain, tenant_id
        self._answers: list[str] = []
        self._began = self._clock()

    def tell(self) -> Told:
        """Make all calls; return what they left."""
        self._orders()
        self._approvals()
        self._leases_and_attempts()
        self._people()
        self._personal()
        self._mend()
        rows = {}
        for table in METADATA.sorted_tables:
            key = ", ".join(column.name for column in table.primary_key.columns)
            query = f"SELECT to_jsonb(r)::text FROM {table.fullname} r WHERE tenant_id = %s ORDER BY {key}"
            found = self._plain.execute(query.encode(), (self._tenant,)).fetchall()
            rows[table.fullname] = self._strip(row for (row,) in found)
        rows["os_core.work_order_leases"].sort()  # their key is random
        return Told(self._strip(self._answers), rows)

    def _orders(self) -> None:
        begun = self._wire(
            "WORK_ORDER_CREATED",
            "order",
            payload={"fields": {"a": 1, "b": ODD}, "requester_user_id": "alice"},
            idempotency_key="clé \\ 'one'",
            occurred_at="2026-03-29T02:30:00.123456+02:00",
        )
        self._append(begun)
        self._append({**begun, "occurred_at": "2026-03-29T02:30:00Z"})
        self._append({**begun, "reason_code": 9})
        field_key = {"field_key": "a"}
        self._append(
            self._event("FIELD_SET", {**field_key, "value": ODD}, occurred_at="9999-12-31T23:59:59.999999Z"),
            self._event("FIELD_SET", {**field_key, "value": 2}, occurred_at="0001-01-01T00:00:00Z"),
            self._event("FIELD_PROMPTED", {"field_key": "c", "prompt_dedupe_key": "c-1"}),
            self._event("FIELD_SET", {"field_key": "c", "value": "x"}, occurred_at="2026-10-25T01:30:00Z"),
            self._event("FIELD_CONFLICT_DETECTED", {**field_key, "candidates": [1.5, "two"]}),
            self._event("FIELD_PROMPTED", {**field_key, "prompt_dedupe_key": "NULL"}),
            self._event("FIELD_CONFLICT_RESOLVED", {**field_key, "value": 1.5}),
            self._event("STATUS_CHANGED", {"previous_status": "CLARIFY"}, work_order_status="CONFIRM"),
        )
        for _ in range(2):
            self._append(self._event("FIELD_PROMPTED", {"field_key": "d", "prompt_dedupe_key": "d-1"}))
        for kind in ("STEP_STARTED", "STEP_FINISHED", "STEP_FAILED", "STEP_RETRY_SCHEDULED"):
            self._append(
                self._event(kind, {"resource": "crm", "odd": ODD}, step_id="crm", step_input_hash="h")
            )
        self._append(self._event("FIELD_SET", {**field_key, "value": 3}, occurred_at="2026-02-29T00:00:00Z"))
        self._append(self._event("FIELD_SET", {**field_key, "value": 3}, expected_seq=1))
        for name in ("canceled", "ended"):
            self._append(self._wire("WORK_ORDER_CREATED", name))
        self._append(self._wire("WORK_ORDER_CANCELED", "canceled", occurred_at="2026-01-01T05:45:00+05:45"))
        self._append(self._wire("STATUS_CHANGED", "ended", work_order_status="DONE"))
        self._append(self._wire("STATUS_CHANGED", "ended", work_order_status="DONE"))

    def _approvals(self) -> None:
        hour = {name: (self._began + offset).isoformat() for name, offset in _OFFSETS.items()}
        zoned = (self._began + HOUR).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for request_id, expires_at, outcome in (
            ("soon", zoned, "EXPIRED"),
            ("soon-at-an-offset", hour["in an hour"], "EXPIRED"),
            ("over", hour["an hour ago"].replace("+00:00", "Z"), "EXPIRED"),
            ("never", "9999-12-31T23:59:59Z", "REJECTED"),
            ("fixed", "2031-07-01T00:00:00+09:30", None),
        ):
            order = self._id(request_id)
            ask = {"request_id": order, "target_user_id": "bob", "expires_at": expires_at}
            self._append(
                self._wire("WORK_ORDER_CREATED", request_id),
                self._wire("EXTERNAL_APPROVAL_REQUESTED", request_id, payload=ask),
            )
            for _ in range(2):
                self._answer("SELECT os_core.notify_wait(%s, %s)", order)
            self._append(self._wire("STEP_STARTED", request_id))
            for answer in (outcome, outcome and "APPROVED"):
                if answer is not None:
                    payload = {"request_id": order, "outcome": answer}
                    self._append(self._wire("EXTERNAL_APPROVAL_RESOLVED", request_id, payload=payload))

    def _leases_and_attempts(self) -> None:
        order, token = self._id("order"), "a-token-of-twenty-or-so"
        lease = "SELECT lease_state, fence, lease_token_hash FROM os_core."
        start = (
            "SELECT attempt_index, attempt_status FROM"
            " os_core.start_step_attempt(%s, %s, %s, %s, 3, 1800000, %s, %s)"
        )
        ttl, renewed = (each // timedelta(milliseconds=1) for each in (LEASE, RENEWED))
        self._answer(lease + "acquire_lease(%s, %s, 'worker', %s, %s, 'key')", order, token, ttl)
        self._answer(lease + "acquire_lease(%s, %s, 'other', %s, %s)", order, token[::-1], ttl)
        self._append(self._event("STEP_STARTED", {}, step_id="crm"))
        self._append(self._event("STEP_STARTED", {}, step_id="crm", lease_token=token))
        self._answer(start, order, "book", 600_000, "book-1", token)
        self._answer(start, order, "quick", 1, "quick-1", token)
        self._plain.execute("SELECT pg_sleep(0.01)")  # past its timeout
        attempt = self._plain.execute(
            "SELECT min(step_attempt_id) FROM os_core.work_order_step_attempts WHERE tenant_id = %s",
            (self._tenant,),
        ).fetchone()
        assert attempt is not None
        for _ in range(2):
            self._answer(
                "SELECT action, next_attempt_index FROM"
                " os_core.finish_step_attempt(%s, %s, 'FAILED', 7, TRUE, %s, 'finish')",
                *(attempt[0], token),
            )
        self._answer(start, order, "book", 600_000, "book-2", token)
        self._answer("SELECT step_id FROM os_core.due_step_retries(%s, 10)")
        self._answer(start, order, "quick", 600_000, "quick-2", token)
        self._answer("SELECT step_id FROM os_core.due_step_retries(%s, 10)")
        self._answer(lease + "renew_lease(%s, %s, %s, %s)", order, token, renewed)
        self._answer(lease + "acquire_lease(%s, %s, 'other', %s, %s)", order, token[::-1], ttl)
        self._answer(
            "SELECT work_order_status, last_seq, fields_json::text FROM os_core.lock_work_order(%s, %s)",
            order,
        )
        for _ in range(2):
            self._answer(
                "SELECT decision, field_key, reason, replayed"
                " FROM os_core.ask_field(%s, %s, '{place,date}', '{date}', NULL, 7, 'ask')",
                order,
            )
        held = self._id("held")
        self._append(self._wire("WORK_ORDER_CREATED", "held"))
        self._answer(lease + "acquire_lease(%s, %s, 'worker', %s, %s)", held, token, ttl)
        self._answer("SELECT os_core.release_lease(%s, %s, %s, '2999-01-01 00:00:00+00')", held, token)
        claim = "SELECT lease_state, fence FROM os_core.claim_work_order(%s, 'worker', %s, %s, %s)"
        for _ in range(2):
            self._answer(claim, "a-token-of-the-claim's-own", ttl, ["DRAFT", "CLARIFY", "CONFIRM"])
        self._answer("SELECT replayed FROM os_core.cancel_work_order(%s, %s, 7, 'cancel', %s)", held, "né")

    def _people(self) -> None:
        thread = str(thread_of(self._tenant))
        self._answer("SELECT status FROM os_core.register_identity(%s, 'user', 'speaker', 'de')")
        self._answer("SELECT device_type FROM os_core.register_device(%s, 'user', 'device', 'phone')")
        self._answer("SELECT session_state FROM os_core.open_session(%s, 'session', 'user', 'device')")
        self._answer("SELECT session_state FROM os_core.touch_session(%s, 'session')")
        self._answer("SELECT session_state FROM os_core.move_session(%s, 'session', 'CLOSED')")
        said = (
            "SELECT turn_id, replayed FROM conversation.append_turn(%s, %s, %s, 'user', 'USER',"
            " 'TYPED_TEXT', %s, 'PUBLIC_CHAT', 'session', 'device', %s)"
        )
        for turn_id, text in ((1, ODD["text"]), (2, "Grüße"), (2, "Grüße"), (2, "grüße")):
            self._answer(said, thread, turn_id, text, f"turn-{turn_id}")
        self._answer(
            "SELECT turn_id, replayed FROM conversation.tombstone_turn(%s, %s, (SELECT"
            " min(conversation_turn_id) FROM conversation.read_turns(%s, %s, 0, 1)), 7)",
            *(thread, self._tenant, thread),
        )
        self._answer("SELECT turn_id, text FROM conversation.read_turns(%s, %s, 0, 9)", thread)

    def _personal(self) -> None:
        """Keep personal values, read them, and erase one of two people."""
        given = {who: {"$personal": {"subject": who, "value": ODD}} for who in ("user", "other")}
        self._append(self._wire("STEP_STARTED", "personal-no-order", payload=given))
        self._append(self._wire("WORK_ORDER_CREATED", "personal", payload={"fields": given}))
        resolved = (
            "SELECT os_core.resolve_values(%s, (SELECT fields_json FROM os_core.work_orders_current"
            " WHERE tenant_id = %s AND work_order_id = %s))"
        )
        self._answer(resolved, self._tenant, self._id("personal"))
        self._answer("SELECT os_core.enroll_feed(%s, 'billing')")
        # An erasure must see what was committed last: it refuses another isolation, whoever asked for that.
        self._conn.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
        self._answer("SELECT values_erased, replayed FROM os_core.erase_subject(%s, 'other', 7)")
        self._answer("SELECT os_core.advance_feed(%s)")
        self._conn.execute("COMMIT")
        self._answer(resolved, self._tenant, self._id("personal"))

    def _mend(self) -> None:
        """Verify, look back and rebuild; first in order, then where rows have drifted and one is lost."""
        then = (
            "SELECT last_seq, fields_json::text, asked_fields_json::text, resolved_fields_json::text,"
            " extract(epoch FROM external_approval_expires_at)::text"
        )
        verify = "SELECT * FROM os_core.verify_work_orders(%s)"
        chain = "SELECT * FROM os_core.verify_chain(%s)"
        rebuild = "SELECT * FROM os_core.rebuild_work_orders(%s, '', 100)"
        self._answer(verify)
        self._answer(chain)
        for order, seq in (("order", 9), ("order", 12), ("never", 2), ("fixed", 3)):
            self._answer(f"{then} FROM os_core.work_order_as_of(%s, %s, p_seq => %s)", self._id(order), seq)
        at = f"{then} FROM os_core.work_order_as_of(%s, %s, p_at => %s)"
        self._answer(at, self._id("order"), self._clock())
        self._answer(rebuild)
        with self._plain.transaction():
            self._plain.execute("SET LOCAL session_replication_role = replica")
            for damage in (
                "UPDATE os_core.work_orders_current SET external_approval_expires_at = NULL,"
                " asked_fields_json = '{}', resolved_fields_json = '{}' WHERE tenant_id = %s",
                "DELETE FROM os_core.work_orders_current"
                " WHERE tenant_id = %s AND work_order_id LIKE '%%-canceled'",
            ):
                self._plain.execute(damage.encode(), (self._tenant,))
        self._answer(verify)
        self._answer("SELECT * FROM os_core.rebuild_work_order(%s, %s)", self._id("order"))
        self._answer(rebuild)
        self._answer(verify)

    def _id(self, name: str) -> str:
        return f"{self._tenant}-{name}"

    def _wire(self, kind: str, name: str, **given: Any) -> dict[str, Any]:
        # Tenants may have the same threads, and do here.
        return wire(kind, self._id(name), correlation_id=str(correlation_of(name)), **given)

    def _event(self, kind: str, payload: dict[str, Any], **given: Any) -> dict[str, Any]:
        return self._wire(kind, "order", payload=payload, **{"work_order_status": "CLARIFY", **given})

    def _append(self, *events: dict[str, Any]) -> None:
        self._answer(
            "SELECT work_order_seq, replayed FROM os_core.append_work_order_events(%s, %s)",
            json.dumps(events),
        )

    def _answer(self, statement: str, *arguments: object) -> None:
        try:
            rows = self._conn.execute(statement.encode(), (self._tenant, *arguments)).fetchall()
            self._answers.append(json.dumps(rows, default=str))
        except psycopg.Error as exc:
            self._answers.append(f"{exc.sqlstate} {exc.diag.message_primary} {exc.diag.message_detail}")

    def _clock(self) -> datetime:
        row = self._plain.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        clock: datetime = row[0]
        return clock.astimezone(UTC)

    def _first(self, table: str) -> int:
        key = METADATA.tables[table].primary_key.columns.keys()[0]
        query = f"SELECT min({key}) FROM {table} WHERE tenant_id = %s"
        row = self._plain.execute(query.encode(), (self._tenant,)).fetchone()
        return row[0] if row else 0

    def _strip(self, texts: Iterable[str]) -> list[str]:
        """Take out what each story has its own of: ids, and the clock while it was told."""
        ended = self._clock()
        firsts = {kind: self._first(table) for kind, table in _SERIALS.items()}

        def serial(match: re.Match[str]) -> str:
            kind = next(kind for kind in firsts if kind in match[1])
            return f"{match[1]}{int(match[2]) - firsts[kind] + 1}"

        def time(match: re.Match[str]) -> str:
            at = datetime.fromisoformat(match[0])
            for name, offset in _OFFSETS.items():
                # What was asked for may have been cut to whole seconds.
                if self._began - timedelta(seconds=1) + offset <= at <= ended + offset:
                    return name
            return match[0]

        def strip(text: str) -> str:
            text = _RANDOM.sub(r"\1\2…", _SERIAL.sub(serial, _TIME.sub(time, text)))
            return text.replace(str(thread_of(self._tenant)), "{thread}").replace(self._tenant, "{tenant}")

        return [strip(text) for text in texts]


def read(engine: Engine, tenant_id: str) -> list[object]:
    """Read through the repositories what a story left."""
    with tenant_scope(engine, tenant_id) as conn:
        orders, attempts = WorkOrderRepository(conn), StepAttemptRepository(conn)
        people, thread = IdentityRepository(conn), thread_of(tenant_id)
        found: list[object] = [orders.list_pending(limit=100), attempts.due_retries()]
        found += [orders.list_pending(limit=100, after=orders.list_pending(limit=1)[0], within=HOUR)]
        for name in ("order", "never", "fixed", "over", "held"):
            order = f"{tenant_id}-{name}"
            found += [orders.get(order), [*orders.events(order)], orders.as_of(order, seq=2)]
            found += [attempts.history(order), LeaseRepository(conn).current(order)]
        last = orders.get(f"{tenant_id}-order")
        assert last is not None
        found += [
            orders.as_of(last.work_order_id, at=last.last_updated_at),
            orders.verify(),
            orders.verify_chain(),
        ]
        found += [people.get_identity("user"), people.get_device("device"), people.get_session("session")]
        return [*found, ConversationRepository(conn).page(thread)]
