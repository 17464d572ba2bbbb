"""What the clients do: writers, workers, askers, speakers and readers, each by its own luck."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from soak.clients.events import ALWAYS, FIELDS, TYPES, Event, Events, correlation_of, creation
from soak.clients.session import ISOLATIONS, READS, Lost, Refused, Session

# What may be sent again: it has a name of its own, by which the database knows it.
REPEATABLE = frozenset(
    {"append", "ask", "claim", "cancel", "acquire", "start", "finish", "release", "turn", "tombstone"}
)
ORDERS_AT_ONCE, SPEAKERS = 6, 3
CONSUMERS = ("billing", "mirror")

Sent = tuple[str, str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the clients of a round meet: its tenants, and work orders that change with the time."""

    prefix: str
    tenants: tuple[str, ...]
    began: float
    seconds_an_order: float

    def order(self, tenant: str, luck: Random) -> str:
        """Choose one of the orders that are in use now."""
        newest = int((time.monotonic() - self.began) / self.seconds_an_order)
        return f"{self.prefix}{tenant}.{newest + luck.randrange(ORDERS_AT_ONCE)}"


class Client:
    """One client, whoever carries it: a process that may be killed, or a thread of a test."""

    def __init__(self, stage: Stage, session: Session, events: Events, luck: Random, name: str) -> None:
        self.stage, self.session, self.events, self.luck, self.name = stage, session, events, luck, name
        self._sent: deque[Sent] = deque(maxlen=40)
        self._known: dict[str, int] = {}

    def act(self, role: str) -> None:
        """Do one thing; what is refused is a part of it. Raises Lost."""
        tenant = self.luck.choice(self.stage.tenants)
        try:
            if self._sent and self.luck.random() < 0.08:
                self._repeat(*self.luck.choice(self._sent))
            else:
                ROLES[role](self, tenant)
        except Refused:
            pass
        except Lost:
            # Most clients ask again; some never learn what became of it.
            if self._sent and self.luck.random() < 0.8:
                self.again(self._sent[-1])
            else:
                raise

    def again(self, sent: Sent) -> None:
        """Send a call again whose answer never came."""
        with suppress(Refused):
            self.session.alone(sent[0], sent[1], **sent[2])

    def _repeat(self, tenant: str, op: str, args: dict[str, Any]) -> None:
        if op == "append" and self.luck.random() < 0.15:
            # Under a used key something else: it must be refused.
            args = {"events": [{**event, "turn_id": event.get("turn_id", 1) + 1} for event in args["events"]]}
        self.session.alone(tenant, op, **args)

    def call(self, tenant: str, op: str, **args: Any) -> list[dict[str, Any]]:
        """Send a call by itself; remember it if it may be sent again."""
        if is_repeatable(op, args):
            self._sent.append((tenant, op, args))
        return self.session.alone(tenant, op, **args)

    # --- writers

    def write(self, tenant: str) -> None:
        """Append: one event, a batch, or a transaction with savepoints."""
        match self.luck.choices(("one", "batch", "transaction", "cancel"), (10, 5, 5, 0.3))[0]:
            case "one":
                self._append(tenant, [self._event(tenant)])
            case "batch":
                self._append(tenant, self._batch(tenant))
            case "cancel":
                order = self.stage.order(tenant, self.luck)
                reason = self.events.reason()
                self.call(
                    tenant, "cancel", work_order_id=order, reason_code=reason, idempotency_key=f"k-{reason}"
                )
            case _:
                self._transaction(tenant)

    def _append(self, tenant: str, events: list[Event]) -> None:
        try:
            rows = self.call(tenant, "append", events=events)
        except Refused as refused:
            if refused.sqlstate == "SL016":
                self._create(tenant, events[0]["work_order_id"])
            return
        self._known |= {
            event["work_order_id"]: row["work_order_seq"] for event, row in zip(events, rows, strict=True)
        }

    def _create(self, tenant: str, order: str) -> None:
        self.call(tenant, "append", events=[creation(order)])

    def _event(self, tenant: str, **given: Any) -> Event:
        order = self.stage.order(tenant, self.luck)
        event = self.events.event(order, **given)
        match self.luck.randrange(40):
            case 0:
                event["correlation_id"] = correlation_of(self.stage.order(tenant, self.luck))
            case 1:
                event["correlation_id"] = correlation_of(f"{order}/{self.events.reason()}")
            case 2 | 3 if order in self._known:
                event["expected_seq"] = self._known[order] + self.luck.randrange(2)
        return event

    def _batch(self, tenant: str) -> list[Event]:
        types = ALWAYS if self.luck.random() < 0.8 else TYPES
        events = [
            self._event(tenant, event_type=self.luck.choice(types)) for _ in range(self.luck.randint(2, 6))
        ]
        for event in events:
            event.pop("expected_seq", None)
        if self.luck.random() < 0.3:
            order = self.stage.order(tenant, self.luck)
            events.insert(0, creation(order))
        if self.luck.random() < 0.3 and "idempotency_key" in events[-1]:
            events.append(dict(events[-1]))
        return events

    def _transaction(self, tenant: str) -> None:
        luck = self.luck
        isolation = luck.choice(ISOLATIONS)
        with self.session.transaction(tenant, isolation, undo=luck.random() < 0.15) as block:
            for setting in self._settings():
                block.execute(f"SET LOCAL {setting}")
            for _ in range(luck.randint(1, 4)):
                order = self.stage.order(tenant, luck)
                match luck.choice(("append", "append", "savepoint", "get", "events", "wait")):
                    case "append":
                        events = [self._event(tenant)]
                        if is_repeatable("append", {"events": events}):
                            self._sent.append((tenant, "append", {"events": events}))
                        block.call("append", events=events)
                    case "savepoint":
                        with block.savepoint(undo=luck.random() < 0.4):
                            block.call("append", events=self._batch(tenant))
                    case "wait":
                        time.sleep(luck.random() * 0.08)
                    case read:
                        block.call(read, work_order_id=order)

    def _settings(self) -> list[str]:
        """Return settings under which calls run out of time, or times look different."""
        luck = self.luck
        few = luck.randint(1, 60)
        return luck.choice(
            (
                *[[]] * 4,
                [f"lock_timeout = {few}"],
                [f"statement_timeout = {few}"],
                [f"idle_in_transaction_session_timeout = {few}"],
                ["TimeZone = 'Asia/Kathmandu'", "extra_float_digits = -3"],
            )
        )

    # --- workers

    def work(self, tenant: str) -> None:
        """Take a lease and do a step under it; now and then let it expire, or come back too late."""
        luck, order = self.luck, self.stage.order(tenant, self.luck)
        token, owner = secrets.token_urlsafe(18), self.name
        ttl_ms = luck.choice((20, 60, 200, 600))
        given = {"work_order_id": order, "token": token}
        if luck.random() < 0.4:
            statuses = luck.choice((["EXECUTING"], ["CLARIFY", "EXECUTING"]))
            claimed = self.call(tenant, "claim", owner=owner, token=token, ttl_ms=ttl_ms, statuses=statuses)
            if not claimed:
                return
            order = given["work_order_id"] = claimed[0]["work_order_id"]
        else:
            try:
                self.call(
                    tenant,
                    "acquire",
                    **given,
                    owner=owner,
                    ttl_ms=ttl_ms,
                    idempotency_key=luck.choice((None, self.events.key())),
                )
            except Refused as refused:
                if refused.sqlstate == "SL016":
                    self._create(tenant, order)
                return
        step = luck.choice(("book", "pay", "send"))
        for _ in range(luck.randint(1, 4)):
            try:
                self._under_lease(tenant, order, token, step)
            except Refused:
                if luck.random() < 0.5:
                    break
        if luck.random() < 0.7:
            self.call(tenant, "release", **given)

    def _under_lease(self, tenant: str, order: str, token: str, step: str) -> None:
        luck, given = self.luck, {"work_order_id": order, "token": token}
        match luck.choice(("step", "step", "attempt", "attempt", "renew", "wait")):
            case "step":
                event = self.events.event(
                    order, luck.choice(("STEP_STARTED", "STEP_FINISHED")), lease_token=token
                )
                self.call(tenant, "append", events=[event])
            case "renew":
                self.call(tenant, "renew", **given, ttl_ms=luck.choice((20, 100, 400)))
            case "wait":
                time.sleep(luck.random() * 0.1)
            case _:
                started = self.call(
                    tenant,
                    "start",
                    **given,
                    step_id=step,
                    timeout_ms=luck.choice((30, 2000)),
                    max_retries=3,
                    retry_backoff_ms=luck.choice((1, 40)),
                    idempotency_key=self.events.key(),
                )[0]
                time.sleep(luck.random() * 0.05)
                reason = self.events.reason()
                self.call(
                    tenant,
                    "finish",
                    step_attempt_id=started["step_attempt_id"],
                    work_order_id=order,
                    outcome=luck.choice(("SUCCEEDED", "FAILED", "FAILED", "FAILED")),
                    reason_code=reason,
                    retryable=luck.random() < 0.7,
                    token=token,
                    idempotency_key=f"k-{reason}",
                )

    # --- askers

    def ask(self, tenant: str) -> None:
        """Ask, answer, and wait for approvals: several at once about the same fields."""
        luck, order = self.luck, self.stage.order(tenant, self.luck)
        event_type = luck.choice(
            (
                *("FIELD_PROMPTED", "FIELD_PROMPTED", "FIELD_SET", "FIELD_CONFLICT_DETECTED"),
                *("FIELD_CONFLICT_RESOLVED", "EXTERNAL_APPROVAL_REQUESTED", "notify", "ask", "ask"),
                *("EXTERNAL_APPROVAL_WAIT_NOTIFIED", *["EXTERNAL_APPROVAL_RESOLVED"] * 3),
            )
        )
        if event_type == "ask":
            reason = self.events.reason()
            required = luck.sample(FIELDS, k=luck.randint(1, len(FIELDS)))
            key = f"k-{reason}"
            given = {"work_order_id": order, "required_fields": required, "reason_code": reason}
            self.call(tenant, "ask", **given, idempotency_key=key)
        elif event_type == "notify":
            self.call(tenant, "notify_wait", work_order_id=order, reason_code=self.events.reason())
        else:
            self._append(tenant, [self.events.event(order, event_type)])

    # --- speakers

    def speak(self, tenant: str) -> None:
        """Say something in a conversation that others take part in, hide it, or read what was said."""
        luck = self.luck
        speaker = luck.randrange(SPEAKERS)
        user = f"{self.stage.prefix}{tenant}.u{speaker}"
        conversation = self.stage.order(tenant, luck) + "/talk"
        place = {"correlation_id": correlation_of(conversation)}
        with_device = {"user_id": user, "device_id": f"{user}-d", "session_id": f"{user}-s"}
        match luck.choice(("turn", "turn", "turn", "tombstone", "turns")):
            case "turn":
                turn = {
                    **place,
                    **(
                        with_device if luck.random() < 0.5 else dict.fromkeys(with_device) | {"user_id": user}
                    ),
                    "turn_id": luck.randint(1, 60),
                    "text": f"{self.name} says {luck.choice(('yes', 'no', 'é', ''))}{self.events.reason()}",
                    "idempotency_key": luck.choice((None, self.events.key())),
                }
                try:
                    self.call(tenant, "turn", **turn)
                except Refused as refused:
                    if refused.sqlstate in ("SL020", "SL021", "SL022"):
                        self._introduce(tenant, with_device)
                        self.call(tenant, "turn", **turn)
            case "tombstone":
                if rows := [
                    row for row in self.call(tenant, "turns", **place) if row["source"] != "TOMBSTONE"
                ]:
                    self.call(
                        tenant,
                        "tombstone",
                        **place,
                        conversation_turn_id=luck.choice(rows)["conversation_turn_id"],
                        reason_code=self.events.reason(),
                        idempotency_key=self.events.key(),
                    )
            case _:
                self.call(tenant, "turns", **place)

    def _introduce(self, tenant: str, who: dict[str, str]) -> None:
        self.call(tenant, "identity", user_id=who["user_id"])
        self.call(tenant, "device", user_id=who["user_id"], device_id=who["device_id"])
        self.call(tenant, "session", **who)

    # --- consumers

    def consume(self, tenant: str) -> None:
        """Give positions, and take events: two clients are one consumer, which keeps what it has taken."""
        luck = self.luck
        try:
            self.call(tenant, "advance", limit=luck.choice((5, 1000)))
        except Refused:
            time.sleep(0.2)  # there is no feed yet
            return
        consumer = luck.choice(CONSUMERS)
        with self.session.transaction(tenant, luck.choice(ISOLATIONS), undo=luck.random() < 0.1) as block:
            block.call("consume", consumer=consumer, limit=luck.choice((1, 20, 500)))
            if luck.random() < 0.2:
                block.call("append", events=[self._event(tenant)])
            time.sleep(luck.random() * 0.03)

    # --- readers

    def read(self, tenant: str) -> None:
        """Read orders, at any isolation level; now and then one of another tenant, which is not there."""
        luck = self.luck
        with self.session.transaction(tenant, luck.choice(ISOLATIONS)) as block:
            for _ in range(luck.randint(1, 4)):
                whose = luck.choice(self.stage.tenants) if luck.random() < 0.1 else tenant
                order = self.stage.order(whose, luck)
                for read in luck.sample(sorted(READS), k=luck.randint(1, 2)):
                    block.call(read, work_order_id=order)


def is_repeatable(op: str, args: Mapping[str, Any]) -> bool:
    """Tell whether a call may be sent again: everything in it has a name of its own."""
    if op == "append":
        return all("idempotency_key" in event for event in args["events"])
    return op in REPEATABLE


ROLES: Mapping[str, Callable[[Client, str], None]] = {
    "writer": Client.write,
    "worker": Client.work,
    "asker": Client.ask,
    "speaker": Client.speak,
    "reader": Client.read,
    "consumer": Client.consume,
}
