"""One work order by itself: numbers, rules, projection, leases and attempts, from its rows alone."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from soak.checker.chain import check_chain
from soak.checker.finding import Finding
from soak.checker.model import CANCELERS, JSON_COLUMNS, State, exact, fold, refusal
from soak.checker.tables import Order, Row

Found = Iterator[tuple[str, str]]


def states(order: Order) -> list[State]:
    """Return the state after each event."""
    found: list[State] = []
    for event in order.ledger:
        found.append(fold(found[-1] if found else None, event))
    return found


def check_order(tenant: str, name: str, order: Order) -> Iterator[Finding]:
    """Find what is wrong with a work order."""
    folded = states(order)
    for kind, what in (
        *_numbers(order),
        *_rules(order, folded),
        *_projection(tenant, order, folded),
        *_leases(order, folded),
        *_attempts(order),
        *check_chain(order),
    ):
        yield Finding(kind, tenant, name, what)


def _numbers(order: Order) -> Found:
    keys: dict[str, int] = {}
    for place, event in enumerate(order.ledger, start=1):
        if event["work_order_seq"] != place:
            yield (
                "order",
                f"event {event['work_order_event_id']} has seq {event['work_order_seq']}, not {place}",
            )
        if place > 1 and event["created_at"] < order.ledger[place - 2]["created_at"]:
            yield "order", f"seq {event['work_order_seq']} was created before the event before it"
        if (key := event["idempotency_key"]) is not None:
            if key in keys:
                yield "twice", f"key {key} at seq {keys[key]} and at seq {event['work_order_seq']}"
            keys[key] = event["work_order_seq"]


def _rules(order: Order, folded: list[State]) -> Found:
    """Every event may stand where it stands; lease tokens are the history's matter."""
    for before, event, earlier in zip([None, *folded], order.ledger, [None, *order.ledger], strict=False):
        canceled_by = set()
        if earlier is not None and earlier["work_order_status"] == "CANCELED":
            canceled_by = {earlier["event_type"]} & CANCELERS
        if sqlstate := refusal(before, event, canceled_by, event["created_at"], leases=False):
            yield (
                "rule",
                f"seq {event['work_order_seq']}, {event['event_type']}, had to be refused: {sqlstate}",
            )


def _projection(tenant: str, order: Order, folded: list[State]) -> Found:
    if not order.ledger or len(order.current) != 1:
        yield "fold", f"{len(order.ledger)} events and {len(order.current)} rows of the projection"
        return
    yield from (("fold", what) for what in differences(order.current[0], {**folded[-1], "tenant_id": tenant}))


def differences(row: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    """Say in which columns a row is not the state."""
    for name in row.keys() | state.keys():
        if name not in row or name not in state:
            yield f"column {name} is known to one side only"
        elif name in JSON_COLUMNS:
            if exact(row[name]) != exact(state[name]):
                yield f"{name} is {row[name]}, the fold says {state[name]}"
        elif row[name] != state[name]:
            yield f"{name} is {row[name]}, the fold says {state[name]}"


def _leases(order: Order, folded: list[State]) -> Found:
    """The intervals of the LEASE_* events do not overlap, and the table says the same as they do."""
    told: dict[str, Row] = {}
    for before, event in zip([None, *folded], order.ledger, strict=False):
        token, seq, now = event["lease_token_hash"], event["work_order_seq"], event["created_at"]
        held = _held(before, now)
        match event["event_type"]:
            case "LEASE_ACQUIRED":
                if held is not None:
                    yield "lease", f"taken at seq {seq} while somebody else held it"
                if token in told:
                    yield "lease", f"one token was given two leases, at seq {told[token]['fence']} and {seq}"
                for lease in told.values():
                    if lease["lease_state"] == "ACTIVE":
                        lease["lease_state"] = "EXPIRED"
                told[token] = {
                    "lease_owner_id": event["lease_owner_id"],
                    "lease_state": "ACTIVE",
                    "fence": seq,
                    "lease_expires_at": event["lease_expires_at"],
                }
            case "LEASE_RENEWED":
                if held != token:
                    yield "lease", f"renewed at seq {seq} by one who did not hold it"
                if token in told:
                    told[token]["lease_expires_at"] = event["lease_expires_at"]
            case "LEASE_RELEASED":
                if before is None or before["lease_token_hash"] != token:
                    yield "lease", f"given back at seq {seq} by one who did not have it"
                if token in told:
                    told[token]["lease_state"] = "RELEASED"
    stored = {row["lease_token_hash"]: {name: row[name] for name in _TOLD} for row in order.leases}
    for token in told.keys() | stored.keys():
        if told.get(token) != stored.get(token):
            yield "lease", f"its table says {stored.get(token)}, its events say {told.get(token)}"


_TOLD = ("lease_owner_id", "lease_state", "fence", "lease_expires_at")


def _held(state: State | None, now: datetime) -> str | None:
    """Return the hash of the token by which the order is held."""
    if state is None or state["lease_expires_at"] is None or state["lease_expires_at"] <= now:
        return None
    token: str = state["lease_token_hash"]
    return token


def _attempts(order: Order) -> Found:
    steps: dict[str, list[Row]] = {}
    for row in order.attempts:
        steps.setdefault(row["step_id"], []).append(row)
    told: dict[int, list[Row]] = {}
    for event in order.ledger:
        if event["event_type"].startswith("STEP_") and "step_attempt_id" in event["payload"]:
            told.setdefault(event["payload"]["step_attempt_id"], []).append(event)
    for step, rows in steps.items():
        for place, row in enumerate(rows, start=1):
            if row["attempt_index"] != place:
                yield (
                    "attempt",
                    f"{step}: attempt {row['step_attempt_id']} has the number {row['attempt_index']}",
                )
        for one, after in pairwise(rows):
            if (what := _may_follow(one, after)) is not None:
                yield "attempt", f"{step}: attempt {after['attempt_index']} began although {what}"
    for row in order.attempts:
        events = told.pop(row["step_attempt_id"], [])
        types = tuple(event["event_type"] for event in events)
        if types not in _EVENTS_OF[row["attempt_status"]]:
            yield (
                "attempt",
                f"attempt {row['step_attempt_id']} is {row['attempt_status']}, its events are {types}",
            )
        elif "STEP_RETRY_SCHEDULED" in types and row["next_retry_at"] is None:
            yield "attempt", f"attempt {row['step_attempt_id']} is to be retried by its events only"
        elif events[0]["created_at"] < row["started_at"]:
            yield "attempt", f"attempt {row['step_attempt_id']} started after its event was written"
        late = row["started_at"] + timedelta(milliseconds=row["timeout_ms"])
        if row["attempt_status"] == "SUCCEEDED" and row["finished_at"] >= late:
            yield "attempt", f"attempt {row['step_attempt_id']} succeeded after its timeout"
        if (row["next_retry_at"] is not None) and row["attempt_index"] > row["max_retries"]:
            yield "attempt", f"attempt {row['step_attempt_id']} is to be retried past its budget"
    for attempt in told:
        yield "attempt", f"there are events of attempt {attempt}, which is not there"


_EVENTS_OF: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "RUNNING": (("STEP_STARTED",),),
    "SUCCEEDED": (("STEP_STARTED", "STEP_FINISHED"),),
    # Without the schedule: it was closed by the next start, or is not retried.
    "FAILED": (("STEP_STARTED", "STEP_FAILED"), ("STEP_STARTED", "STEP_FAILED", "STEP_RETRY_SCHEDULED")),
    "CANCELED": (("STEP_STARTED",),),
}


def _may_follow(one: Row, after: Row) -> str | None:
    """Say why an attempt had to wait for the end of the one before, or for its retry; None if it had not."""
    match one["attempt_status"]:
        case "RUNNING" | "SUCCEEDED":
            return f"the one before is {one['attempt_status']}"
    if one["attempt_index"] > after["max_retries"]:
        return "the retries were spent"
    if one["next_retry_at"] is not None and one["next_retry_at"] > after["started_at"]:
        return "its retry was due later"
    if one["finished_at"] > after["started_at"]:
        return "the one before had not ended"
    return None
