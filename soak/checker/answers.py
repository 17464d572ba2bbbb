"""What clients were told, against what is there: all that was acknowledged, refused, or has no answer."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from soak.checker.finding import Finding, moment
from soak.checker.model import CONTENT, equal
from soak.checker.orders import states
from soak.checker.tables import Order, Place, Row, Tables
from soak.history import Call, Transaction

Found = Iterator[tuple[str, str, list[Call]]]
Mark = tuple[str, Any]
ENVELOPE = ("correlation_id", "turn_id", "work_order_status", "reason_code")
DEFAULTS: Row = {"payload": {}, "step_id": None, "step_input_hash": None}


@dataclass(slots=True)
class Write:
    """One event that clients wanted: every call that asked for it, and the rows that it became."""

    wishes: list[tuple[Call, int, Row]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def calls(self, *fates: str) -> list[Call]:
        """Return the calls with one of these fates."""
        return [call for call, _, _ in self.wishes if call.fate in fates]


class OrderAnswers:
    """What was said about one work order."""

    def __init__(self, place: Place, order: Order) -> None:
        self.place, self.order = place, order
        self.states = states(order)
        self.writes: defaultdict[Mark, Write] = defaultdict(Write)
        self.leases: defaultdict[str, list[Call]] = defaultdict(list)
        self.starts: defaultdict[tuple[str, str], list[Call]] = defaultdict(list)
        self.finishes: list[Call] = []
        self.reads: list[Call] = []
        self.calls: list[Call] = []

    def take(self, call: Call) -> None:
        """Take a call about this order."""
        self.calls.append(call)
        args = call.args
        match call.op:
            case "append":
                for index, event in enumerate(args["events"]):
                    if event["work_order_id"] == self.place[1]:
                        self.writes[mark_of(event)].wishes.append((call, index, {**DEFAULTS, **event}))
            case "cancel":
                event = {"event_type": "WORK_ORDER_CANCELED", "work_order_status": "CANCELED", "payload": {}}
                wish = {
                    **event,
                    "reason_code": args["reason_code"],
                    "idempotency_key": args["idempotency_key"],
                }
                self.writes["key", args["idempotency_key"]].wishes.append((call, 0, wish))
            case "ask":
                event = {"event_type": "FIELD_PROMPTED", "reason_code": args["reason_code"]}
                wish = {**event, "idempotency_key": args["idempotency_key"]}
                self.writes["key", args["idempotency_key"]].wishes.append((call, 0, wish))
            case "notify_wait":
                event = {"event_type": "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "reason_code": args["reason_code"]}
                self.writes["reason", args["reason_code"]].wishes.append((call, 0, event))
            case "acquire" | "claim" | "renew" | "release":
                self.leases[sha256(args["token"].encode()).hexdigest()].append(call)
            case "start":
                self.starts[args["step_id"], args["idempotency_key"]].append(call)
            case "finish":
                self.finishes.append(call)
            case "get" | "events":
                self.reads.append(call)


def mark_of(event: Row) -> Mark:
    """Tell by what a client's event is known again: its key, or else its reason code, which is its own."""
    key = event.get("idempotency_key")
    return ("reason", event["reason_code"]) if key is None else ("key", key)


def by_order(tables: Tables, history: Sequence[Transaction]) -> dict[Place, OrderAnswers]:
    """Sort the calls by the work orders that they are about."""
    found: dict[Place, OrderAnswers] = {}
    claimed = _claimed(tables, history)
    for transaction in history:
        for call in transaction.calls:
            for name in orders_of(call) | claimed.get(
                (transaction.tenant, str(call.args.get("token"))), set()
            ):
                place = transaction.tenant, name
                if place not in found:
                    found[place] = OrderAnswers(place, tables.orders.get(place) or Order())
                found[place].take(call)
    return found


def _claimed(tables: Tables, history: Sequence[Transaction]) -> dict[tuple[str, str], set[str]]:
    """Return the order that each token of a claim got: a claim does not name one."""
    by_hash = {
        (tenant, row["lease_token_hash"]): name
        for (tenant, name), order in tables.orders.items()
        for row in order.leases
    }
    return {
        (each.tenant, token): {by_hash[place]}
        for each in history
        for call in each.calls
        if call.op == "claim"
        and (place := (each.tenant, sha256((token := call.args["token"]).encode()).hexdigest())) in by_hash
    }


def orders_of(call: Call) -> set[str]:
    """Name the work orders that a call is about."""
    if call.op == "append":
        return {event["work_order_id"] for event in call.args["events"]}
    if call.op == "claim":
        return {row["work_order_id"] for row in call.rows or []}
    return {call.args["work_order_id"]} if "work_order_id" in call.args else set()


def check_writes(answers: OrderAnswers) -> Found:
    """Every event was wanted by somebody; what was acknowledged is there once, what was refused is not."""
    for event in answers.order.ledger:
        if not event["event_type"].startswith("LEASE_") and "step_attempt_id" not in event["payload"]:
            write = answers.writes[mark_of(event)]
            write.rows.append(event)
            if not write.wishes:
                yield "ghost", f"seq {event['work_order_seq']}: nobody sent {mark_of(event)}", []
    for mark, write in answers.writes.items():
        yield from _write(mark, write)


def _write(mark: Mark, write: Write) -> Found:
    said, rows = f"the write with {mark[0]} {mark[1]}", write.rows
    done = [wish for wish in write.wishes if wish[0].fate == "acknowledged" and not _wrote_nothing(wish[0])]
    if len(rows) > 1:
        yield (
            "twice",
            f"{said} is at seq {[row['work_order_seq'] for row in rows]}",
            write.calls("acknowledged"),
        )
    if done and not rows:
        yield "lost", f"{said} was acknowledged and is not there", [call for call, _, _ in done]
    if write.wishes and rows and not done and not write.calls("unknown"):
        yield "ghost", f"{said} was refused or undone and is there", [call for call, _, _ in write.wishes]
    if not rows:
        return
    row, first = rows[0], []
    for call, index, wish in done:
        if wrong := [each for each in CONTENT if each in wish and not _same(each, wish[each], row[each])]:
            yield "lost", f"{said} was acknowledged, and is there with another {', '.join(wrong)}", [call]
        if call.op == "notify_wait":
            continue
        told = (call.rows or [])[index]
        if not told["replayed"]:
            first.append(call)
            if moment(row["occurred_at"]) != _instant(wish.get("occurred_at")):
                yield "lost", f"{said} is there with another occurred_at", [call]
        for column in ("work_order_event_id", "work_order_seq", "created_at"):
            if told[column] != moment(row[column]):
                yield (
                    "replay",
                    f"{said} was told to have the {column} {told[column]}, not {row[column]}",
                    [call],
                )
    if len({call.name for call in first}) > 1:
        yield "replay", f"{said} was told twice to be new", first


def _wrote_nothing(call: Call) -> bool:
    """Tell whether a call was answered that there is nothing to be said."""
    if call.rows is None:
        return False
    if call.op == "ask":
        return call.rows[0]["work_order_event_id"] is None
    return call.op == "notify_wait" and not call.rows[0]["notify_wait"]


def _same(column: str, sent: Any, stored: Any) -> bool:
    if sent is None and column in ENVELOPE:
        return True  # left out: the order's own
    return equal(sent, str(stored) if column == "correlation_id" else stored)


def _instant(text: str | None) -> str | None:
    return None if text is None else moment(datetime.fromisoformat(text))


def check_torn(history: Iterable[Transaction], answers: dict[Place, OrderAnswers]) -> Iterator[Finding]:
    """Of a transaction without an answer all is there, or nothing."""
    for transaction in history:
        if transaction.fate != "unknown":
            continue
        there: dict[tuple[Place, Mark], bool] = {}
        for call in transaction.calls:
            if call.op != "append" or call.fate != "unknown":
                continue
            for event in call.args["events"]:
                place = transaction.tenant, event["work_order_id"]
                write = answers[place].writes[mark_of(event)]
                others = [each for each, _, _ in write.wishes if each.transaction is not transaction]
                if all(each.fate == "refused" for each in others):
                    there[place, mark_of(event)] = bool(write.rows)
        if len({*there.values()}) > 1:
            lacking = [f"{place[1]} {mark}" for (place, mark), is_there in there.items() if not is_there]
            subject = f"transaction {transaction.client}/{transaction.number}"
            yield Finding("torn", transaction.tenant, subject, f"only a part is there, without {lacking}")
