"""A small model of contract §4 to §9: what an append is answered, what the projection is, what is claimed.

Written from the text and not from the functions, which it is there to judge, and without an import of
selene_core. The bounds of section 2 are left out. What the tests plan lies far off in either direction, or
is waited for: the model's own clock is not the server's.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

Event = Mapping[str, Any]
State = dict[str, Any]

TERMINAL = {"DONE", "REFUSED", "FAILED", "CANCELED"}
CANCELERS = {"WORK_ORDER_CANCELED", "STATUS_CHANGED"}
CONTENT = (
    "correlation_id",
    "turn_id",
    "event_type",
    "work_order_status",
    "reason_code",
    "step_id",
    "step_input_hash",
    "payload",
)
JSON_COLUMNS = (
    "fields_json",
    "asked_fields_json",
    "resolved_fields_json",
    "conflicts_json",
    "prompt_dedupe_keys_json",
)
LEASE = ("lease_owner_id", "lease_token_hash", "lease_expires_at")
# Section 3: these may be left out, or None, and are then the order's own.
ENVELOPE = {
    "correlation_id": "correlation_id",
    "turn_id": "turn_id",
    "work_order_status": "work_order_status",
    "reason_code": "last_reason_code",
}
# Section 6: these never count as a state change, even with a new status.
NEVER_A_CHANGE = {"FIELD_PROMPTED", "EXTERNAL_APPROVAL_WAIT_NOTIFIED"}
APPROVAL = {
    "external_approval_pending": False,
    "external_approval_request_id": None,
    "external_approval_target_user_id": None,
    "external_approval_expires_at": None,
    "external_approval_notices": 0,
}

LEASE = ("lease_owner_id", "lease_token_hash", "lease_expires_at")


class Refused(Exception):
    """The event at `index` is refused with `sqlstate`; without an index it is the batch as a whole."""

    def __init__(self, sqlstate: str, index: int | None) -> None:
        super().__init__(sqlstate, index)
        self.sqlstate, self.index = sqlstate, index


def exact(value: Any) -> Any:
    """Turn a JSON value into one that equals another's only where jsonb would print the same."""
    match value:
        case bool() | None | str():
            return (type(value).__name__, value)
        case int() | float() | Decimal():
            return ("number", str(value))
        case Mapping():
            return {key: exact(each) for key, each in value.items()}
        case _:
            return [exact(each) for each in value]


def equal(one: Any, other: Any) -> bool:
    """Compare two JSON values as jsonb does: 1 is 1.0, but neither is true."""
    match one, other:
        case (bool(), _) | (_, bool()):
            return one is other
        case (int() | float() | Decimal(), int() | float() | Decimal()):
            return Decimal(str(one)) == Decimal(str(other))
        case Mapping(), Mapping():
            return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(equal, one, other))
        case _:
            return type(one) is type(other) and bool(one == other)


def json_time(at: datetime) -> str:
    """Write an instant as it stands inside JSON."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def required(event: Event) -> set[str]:
    """Return what an event must give of the envelope."""
    match event["event_type"]:
        case "WORK_ORDER_CREATED":
            return {*ENVELOPE}
        case "WORK_ORDER_CANCELED":
            return {"reason_code"}
        case "STATUS_CHANGED" if event["work_order_status"] == "CANCELED":
            return {"work_order_status", "reason_code"}
        case "STATUS_CHANGED":
            return {"work_order_status"}
    return set()


def completed(state: State | None, event: Event) -> State:
    """Return the event with what it leaves out of the envelope."""
    found = {**event}
    if event["event_type"] == "WORK_ORDER_CANCELED":
        found["work_order_status"] = "CANCELED"
    for name, column in ENVELOPE.items():
        if found.get(name) is None and state is not None:
            found[name] = str(state[column]) if name == "correlation_id" else state[column]
    return found


def _same_content(original: Event, event: Event) -> bool:
    compared = [name for name in CONTENT if name not in ENVELOPE or event.get(name) is not None]
    return all(equal(original.get(name), event.get(name)) for name in compared)


def fold(before: State | None, event: Event) -> State:
    """Return the state after one more event; the event has its work_order_event_id, seq and created_at."""
    after = _copy(before) if before is not None else _first(event)
    payload, seq, now = event["payload"], event["work_order_seq"], event["created_at"]
    event_type, status = event["event_type"], event["work_order_status"]
    if before is not None:
        match event_type:
            case "FIELD_SET":
                _write(after, payload, now, seq, resolve=payload["field_key"] in after["asked_fields_json"])
            case "FIELD_CONFLICT_RESOLVED":
                was_open = after["conflicts_json"].pop(payload["field_key"], None) is not None
                _write(after, payload, now, seq, resolve=True, anew=was_open)
            case "FIELD_CONFLICT_DETECTED":
                after["conflicts_json"].setdefault(payload["field_key"], {"seq": seq, "asked": False})
            case "FIELD_PROMPTED":
                _prompt(after, payload, now, seq)
            case "EXTERNAL_APPROVAL_REQUESTED":
                expires_at = payload.get("expires_at")
                after |= {
                    **APPROVAL,
                    "external_approval_pending": True,
                    "external_approval_request_id": payload["request_id"],
                    "external_approval_target_user_id": payload["target_user_id"],
                    "external_approval_expires_at": expires_at and datetime.fromisoformat(expires_at),
                }
            case "EXTERNAL_APPROVAL_WAIT_NOTIFIED" if _pending(after, payload):
                # One, and one more past the expiry: 2 means that nothing more may be said.
                expires_at = after["external_approval_expires_at"]
                past = expires_at is not None and now >= expires_at
                said = after["external_approval_notices"]
                after["external_approval_notices"] = 2 if past else min(said + 1, 2)
            case "EXTERNAL_APPROVAL_RESOLVED" if _pending(after, payload):
                after |= APPROVAL
            case "LEASE_ACQUIRED" | "LEASE_RENEWED":
                after |= {name: event[name] for name in LEASE} | {"queued_at": event["lease_expires_at"]}
            case "LEASE_RELEASED":
                not_before = payload.get("not_before")
                after |= dict.fromkeys(LEASE)
                after["queued_at"] = max(now, datetime.fromisoformat(not_before)) if not_before else now
            case _ if event_type.startswith("STEP_") and "steps_due_at" in payload:
                due = payload["steps_due_at"]
                after["steps_due_at"] = due and datetime.fromisoformat(due)
    if status in TERMINAL:
        after |= APPROVAL
    after |= {
        "correlation_id": UUID(str(event["correlation_id"])),
        "turn_id": event["turn_id"],
        "work_order_status": status,
        "last_event_id": event["work_order_event_id"],
        "last_seq": seq,
        "last_reason_code": event["reason_code"],
        "last_updated_at": now,
        "updated_bucket": now - (now - datetime(2000, 1, 1, tzinfo=UTC)) % timedelta(minutes=5),
        "step_id": event.get("step_id"),
        "step_input_hash": event.get("step_input_hash"),
    }
    if before is None or _is_change(before, after, event):
        after["last_state_change_seq"] = seq
    return after


def _first(event: Event) -> State:
    return {
        "work_order_id": event["work_order_id"],
        "created_at": event["created_at"],
        "requester_user_id": event["payload"].get("requester_user_id"),
        **dict.fromkeys(LEASE),
        "queued_at": event["created_at"],
        "steps_due_at": event["created_at"],
        "fields_json": dict(event["payload"].get("fields", {})),
        "asked_fields_json": {},
        "resolved_fields_json": {},
        "conflicts_json": {},
        "prompt_dedupe_keys_json": {},
        **APPROVAL,
    }


def _copy(state: State) -> State:
    # Values and entries are replaced, never changed; so the keys are all that must be copied.
    return {**state, **{name: {**state[name]} for name in JSON_COLUMNS}}


def _pending(state: State, payload: Mapping[str, Any]) -> bool:
    request_id = state["external_approval_request_id"]
    return bool(state["external_approval_pending"]) and request_id == payload["request_id"]


def _write(
    state: State, payload: Mapping[str, Any], now: datetime, seq: int, *, resolve: bool, anew: bool = False
) -> None:
    key, value = payload["field_key"], payload["value"]
    fields, resolved = state["fields_json"], state["resolved_fields_json"]
    news = key not in fields or not equal(fields[key], value)
    if news:
        fields[key] = value
    # Where nothing but the time of writing would change, nothing changes.
    if resolve and (news or anew or key not in resolved or not equal(resolved[key]["value"], value)):
        resolved[key] = {"value": value, "resolved_at": json_time(now), "seq": seq}


def _prompt(state: State, payload: Mapping[str, Any], now: datetime, seq: int) -> None:
    key, asked = payload["field_key"], state["asked_fields_json"]
    attempts = asked[key]["attempts"] + 1 if key in asked else 1
    asked[key] = {"asked_at": json_time(now), "attempts": attempts, "seq": seq}
    state["prompt_dedupe_keys_json"][payload["prompt_dedupe_key"]] = seq
    if key in state["conflicts_json"]:
        state["conflicts_json"][key] = {**state["conflicts_json"][key], "asked": True}


def _is_change(before: State, after: State, event: Event) -> bool:
    event_type = event["event_type"]
    if event_type in NEVER_A_CHANGE or event_type.startswith(("STEP_", "LEASE_")):
        return False
    relevant = {*APPROVAL, "fields_json", "resolved_fields_json", "conflicts_json"}
    if event_type in CANCELERS:
        relevant.add("work_order_status")
    changed = {name for name in relevant if not equal(before[name], after[name])}
    if event_type == "FIELD_SET" and "fields_json" not in changed:
        relevant.remove("resolved_fields_json")
    return bool(changed & relevant)


@dataclass
class Answer:
    """What an event of a batch is answered: its number, and whether it is the one of an earlier event."""

    seq: int
    replay: bool


@dataclass
class Order:
    """A work order: its events, and its state after each."""

    events: list[State] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    attempts: list[State] = field(default_factory=list)

    @property
    def state(self) -> State | None:
        """The state now; None before the creation."""
        return self.states[-1] if self.states else None

    def add(self, event: Event) -> None:
        """Record an event."""
        self.events.append({**event})
        self.states.append(fold(self.state, event))

    def times(self) -> list[datetime]:
        """Return the moments at which time alone changes whether the order can be claimed."""
        lease: datetime | None = self.state["lease_expires_at"] if self.state else None
        return [at for at in (lease, *map(_due, self.attempts)) if at is not None]

    def queued(self, statuses: Collection[str]) -> datetime | None:
        """Return since or from when the order can be claimed; None if time alone does not make it so."""
        state, last = self.state, {attempt["step_id"]: attempt for attempt in self.attempts}
        if state is None or state["work_order_status"] not in statuses or state["external_approval_pending"]:
            return None
        dues = [state["queued_at"], state["created_at"], *map(_due, last.values())]
        return None if None in dues else max(due for due in dues if due)


def _due(attempt: State) -> datetime | None:
    """Return from when the step of a last attempt may go on; None if somebody has to decide."""
    match attempt["attempt_status"]:
        case "RUNNING" if attempt["attempt_index"] <= attempt["max_retries"]:
            deadline: datetime = attempt["started_at"] + timedelta(milliseconds=attempt["timeout_ms"])
            return deadline
        case "FAILED":
            due: datetime | None = attempt["next_retry_at"]
            return due
        case "SUCCEEDED" | "CANCELED":
            finished: datetime = attempt["finished_at"]
            return finished
    return None


class Model:
    """The work orders of one tenant."""

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}

    def claimed(self, statuses: Collection[str]) -> str | None:
        """Return the order that a claim gets now; None without one."""
        places = {name: order.queued(statuses) for name, order in self.orders.items()}
        due = {name: at for name, at in places.items() if at is not None and at <= datetime.now(UTC)}
        return min(due, key=due.__getitem__) if due else None

    def plan(self, batch: Sequence[Event]) -> list[Answer] | Refused:
        """Return what appending a batch is answered. Changes nothing."""
        try:
            return self._plan(batch)
        except Refused as refused:
            return refused

    def _plan(self, batch: Sequence[Event]) -> list[Answer]:
        draft, canceled_by, answers = deepcopy(self.orders), dict[str, set[str]](), []
        for index, event in enumerate(batch):
            order = draft.setdefault(event["work_order_id"], Order())
            if original := _same_key(order, event):
                if not _same_content(original, event):
                    raise Refused("SL005", index)
                answers.append(Answer(original["work_order_seq"], replay=True))
                continue
            cancelers = canceled_by.setdefault(event["work_order_id"], set())
            if sqlstate := refusal(order.state, event, cancelers, datetime.now(UTC)):
                raise Refused(sqlstate, index)
            event = completed(order.state, event)
            if event["work_order_status"] == "CANCELED":
                cancelers.add(event["event_type"])
            seq = len(order.events) + 1
            now = {"created_at": datetime.now(UTC)}
            order.add({**event, "work_order_event_id": 0, "work_order_seq": seq, **now})
            answers.append(Answer(seq, replay=False))
        held = [order.state["correlation_id"] for order in draft.values() if order.state]
        if len(held) != len(set(held)):
            raise Refused("SL014", None)
        return answers

    def record(self, batch: Sequence[Event], rows: Sequence[Any]) -> None:
        """Take over what the database made of a batch: ids, numbers and times."""
        for event, row in zip(batch, rows, strict=True):
            if not row.replayed:
                order = self.orders.setdefault(event["work_order_id"], Order())
                order.add(
                    {
                        **completed(order.state, event),
                        "work_order_event_id": row.work_order_event_id,
                        "work_order_seq": row.work_order_seq,
                        "created_at": row.created_at,
                    }
                )


def _same_key(order: Order, event: Event) -> State | None:
    key = event.get("idempotency_key")
    return next((each for each in order.events if key and each.get("idempotency_key") == key), None)


def refusal(
    state: State | None, event: Event, canceled_by: set[str], now: datetime, *, leases: bool = True
) -> str | None:
    """Return the SQLSTATE of steps 3 to 6, or None; a lease token is one that nobody holds.

    `canceled_by` has the types of the events that canceled the order in the same batch. Without `leases`
    step 5 is left out: a ledger does not tell who had a token.
    """
    event_type, status = event["event_type"], event.get("work_order_status")
    if event_type == "WORK_ORDER_CANCELED":
        status = "CANCELED"
    expected_seq, last_seq = event.get("expected_seq"), state["last_seq"] if state else 0
    if expected_seq is not None and expected_seq != last_seq:
        return "SL006"
    if state is None and event_type != "WORK_ORDER_CREATED":
        return "SL016"
    if state is not None:
        if event_type == "WORK_ORDER_CREATED":
            return "SL007"
        if event_type == "LEASE_RELEASED" and status == state["work_order_status"]:
            return None
        if status == "CANCELED" and event_type not in CANCELERS:
            return "SL004"
        if state["work_order_status"] in TERMINAL:
            if status != "CANCELED":
                return "SL007"
            # Of the two events that cancel, a batch may hold one of each.
            if not canceled_by or canceled_by == CANCELERS or event_type in canceled_by:
                return "SL004"
        claimed = event["payload"].get("previous_status")
        if event_type == "STATUS_CHANGED" and claimed not in (None, state["work_order_status"]):
            return "SL007"
    if event.get("lease_token") is not None:
        return "SL011"
    if leases and state is not None and event_type.startswith("STEP_") and _held(state, now):
        return "SL010"
    return None if state is None else _may_not_now(state, event) or _may_not_be_said(state, event, now)


def _held(state: State, now: datetime) -> bool:
    expires_at = state["lease_expires_at"]
    return expires_at is not None and bool(expires_at > now)


def _may_not_now(state: State, event: Event) -> str | None:
    """Return what section 7 says while an approval is pending."""
    moves = event.get("work_order_status") not in (None, state["work_order_status"])
    if state["external_approval_pending"] and (
        event["event_type"] in {"FIELD_PROMPTED", "STEP_STARTED", "EXTERNAL_APPROVAL_REQUESTED"}
        or (moves and event.get("work_order_status") in {"EXECUTING", "DONE"})
    ):
        return "SL009"
    return None


def _may_not_be_said(state: State, event: Event, now: datetime) -> str | None:
    """Return what sections 6 and 7 say of prompts, notices and answers."""
    payload = event["payload"]
    match event["event_type"]:
        case "FIELD_PROMPTED":
            return (
                None if _may_be_asked(state, payload["field_key"], payload["prompt_dedupe_key"]) else "SL008"
            )
        case "EXTERNAL_APPROVAL_WAIT_NOTIFIED" | "EXTERNAL_APPROVAL_RESOLVED" if not _pending(state, payload):
            return "SL007"
        case "EXTERNAL_APPROVAL_WAIT_NOTIFIED":
            return (
                "SL008" if state["external_approval_notices"] >= (2 if _expired(state, now) else 1) else None
            )
        case "EXTERNAL_APPROVAL_RESOLVED" if payload["outcome"] == "EXPIRED" and not _expired(state, now):
            return "SL007"
    return None


def _expired(state: State, now: datetime) -> bool:
    expires_at = state["external_approval_expires_at"]
    return expires_at is not None and bool(expires_at <= now)


def _may_be_asked(state: State, key: str, dedupe_key: str) -> bool:
    last_change = state["last_state_change_seq"]
    if state["prompt_dedupe_keys_json"].get(dedupe_key, 0) > last_change:
        return False
    if key in state["conflicts_json"]:
        return not state["conflicts_json"][key]["asked"]
    known = key in state["fields_json"] or key in state["resolved_fields_json"]
    asked = state["asked_fields_json"].get(key, {"seq": 0})
    return not known and asked["seq"] <= last_change
