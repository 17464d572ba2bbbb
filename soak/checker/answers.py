"""What clients were told, against what is there: every write that was acknowledged, refused, or has no answer."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from soak.checker.finding import Finding, moment
from soak.checker.model import CONTENT, State, equal, refusal
from soak.checker.orders import states
from soak.checker.tables import Order, Place, Row, Tables
from soak.history import Call, Transaction

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
                        self.writes[_mark_of(event)].wishes.append((call, index, {**DEFAULTS, **event}))
            case "cancel":
                event = {"event_type": "WORK_ORDER_CANCELED", "work_order_status": "CANCELED", "payload": {}}
                wish = {**event, "reason_code": args["reason_code"], "idempotency_key": args["idempotency_key"]}
                self.writes["key", args["idempotency_key"]].wishes.append((call, 0, wish))
            case "notify_wait":
                event = {"event_type": "EXTERNAL_APPROVAL_WAIT_NOTIFIED", "reason_code": args["reason_code"]}
                self.writes["reason", args["reason_code"]].wishes.append((call, 0, event))
            case "acquire" | "renew" | "release":
                self.leases[sha256(args["token"].encode()).hexdigest()].append(call)
            case "start":
                self.starts[args["step_id"], args["idempotency_key"]].append(call)
            case "finish":
                self.finishes.append(call)
            case "get" | "events":
                self.reads.append(call)


def _mark_of(event: Row) -> Mark:
    """Tell by what a client's event is known again: its key, or else its reason code, which is its own."""
    key = event.get("idempotency_key")
    return ("reason", event["reason_code"]) if key is None else ("key", key)


def by_order(tables: Tables, history: Iterable[Transaction]) -> dict[Place, OrderAnswers]:
    """Sort the calls by the work orders that they are about."""
    found: dict[Place, OrderAnswers] = {}
    for transaction in history:
        for call in transaction.calls:
            for name in orders_of(call):
                place = transaction.tenant, name
                if place not in found:
                    found[place] = OrderAnswers(place, tables.orders.get(place) or Order())
                found[place].take(call)
    return found


def orders_of(call: Call) -> set[str]:
    """Name the work orders that a call is about."""
    if call.op == "append":
        return {event["work_order_id"] for event in call.args["events"]}
    return {call.args["work_order_id"]} if "work_order_id" in call.args else set()


def check_answers(answers: OrderAnswers) -> Iterator[Finding]:
    """Compare what was said about an order with what is there."""
    tenant, name = answers.place
    for kind, what, calls in (
        *_writes(answers),
        *_leases(answers),
        *_tokens(answers),
        *_attempts(answers),
        *_reads(answers),
        *_unknown_order(answers),
    ):
        yield Finding(kind, tenant, name, what, tuple(call.name for call in calls))


Found = Iterator[tuple[str, str, list[Call]]]


def _writes(answers: OrderAnswers) -> Found:
    for event in answers.order.ledger:
        if not event["event_type"].startswith("LEASE_") and "step_attempt_id" not in event["payload"]:
            write = answers.writes[_mark_of(event)]
            write.rows.append(event)
            if not write.wishes:
                yield "ghost", f"seq {event['work_order_seq']}: nobody sent {_mark_of(event)}", []
    for mark, write in answers.writes.items():
        yield from _write(mark, write)


def _write(mark: Mark, write: Write) -> Found:
    said, rows = f"the write with {mark[0]} {mark[1]}", write.rows
    done = [wish for wish in write.wishes if wish[0].fate == "acknowledged" and not _wrote_nothing(wish[0])]
    if len(rows) > 1:
        yield "twice", f"{said} is at seq {[row['work_order_seq'] for row in rows]}", write.calls("acknowledged")
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
                yield "replay", f"{said} was told to have the {column} {told[column]}, not {row[column]}", [call]
    if len({call.name for call in first}) > 1:
        yield "replay", f"{said} was told twice to be new", first


def _wrote_nothing(call: Call) -> bool:
    return call.op == "notify_wait" and call.rows is not None and not call.rows[0]["notify_wait"]


def _same(column: str, sent: Any, stored: Any) -> bool:
    if sent is None and column in ENVELOPE:
        return True  # left out: the order's own
    return equal(sent, str(stored) if column == "correlation_id" else stored)


def _instant(text: str | None) -> str | None:
    return None if text is None else moment(datetime.fromisoformat(text))


def _leases(answers: OrderAnswers) -> Found:
    rows = {row["lease_token_hash"]: row for row in answers.order.leases}
    events: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for event in answers.order.ledger:
        if event["event_type"].startswith("LEASE_"):
            events[event["lease_token_hash"], event["event_type"]].append(event)
    for token in {token for token, _ in events}:
        if token not in answers.leases:
            yield "ghost", f"nobody asked for the lease of seq {rows[token]['fence'] if token in rows else '?'}", []
    for token, calls in answers.leases.items():
        for op, event_type in (
            ("acquire", "LEASE_ACQUIRED"),
            ("renew", "LEASE_RENEWED"),
            ("release", "LEASE_RELEASED"),
        ):
            asked = [call for call in calls if call.op == op]
            told = [call for call in asked if call.fate == "acknowledged" and _did(call)]
            unknown = [call for call in asked if call.fate == "unknown"]
            there = events[token, event_type]
            distinct = {str(call.rows) for call in told} if op == "acquire" else [*map(id, told)]
            if told and not there:
                yield "lost", f"{op} was acknowledged and is not there", told
            elif len(there) > len(told) + len(unknown) or (op != "renew" and len(there) > 1):
                kind = "twice" if told or unknown else "ghost"
                yield kind, f"{op} is there {len(there)} times, acknowledged {len(told)} times", asked
            elif op == "renew" and len(there) < len(distinct):
                yield "lost", f"renew is there {len(there)} times, acknowledged {len(told)} times", told
            expiries = {moment(event["lease_expires_at"]) for event in there}
            for call in told if op != "release" else ():
                answer = (call.rows or [])[0]
                if answer["fence"] != (rows[token]["fence"] if token in rows else None):
                    yield "lease", f"{op} was told the fence {answer['fence']}", [call]
                if op == "renew" and answer["lease_expires_at"] not in expiries:
                    yield "lease", f"renew was told an expiry that no event has: {answer['lease_expires_at']}", [call]


def _did(call: Call) -> bool:
    return call.op != "release" or bool(call.rows and call.rows[0]["release_lease"])


def _tokens(answers: OrderAnswers) -> Found:
    """Whoever wrote with a token held the lease at that moment; nobody else wrote STEP_* meanwhile."""
    order, folded = answers.order, states(answers.order)
    before: dict[int, State | None] = {
        event["work_order_event_id"]: state
        for event, state in zip(order.ledger, [None, *folded], strict=False)
    }
    created = {event["work_order_event_id"]: event["created_at"] for event in order.ledger}
    for write in answers.writes.values():
        for call, index, wish in write.wishes:
            if call.op != "append" or call.fate != "acknowledged" or (call.rows or [])[index]["replayed"]:
                continue
            state = before.get(event_id := (call.rows or [])[index]["work_order_event_id"])
            if state is None:
                continue
            expires_at, token = state["lease_expires_at"], wish.get("lease_token")
            held = expires_at is not None and expires_at > created[event_id]
            mine = token is not None and sha256(token.encode()).hexdigest() == state["lease_token_hash"]
            if token is not None and not (held and mine):
                yield "lease", f"event {event_id} was accepted with a token that held no lease", [call]
            if token is None and held and wish["event_type"].startswith("STEP_"):
                yield "lease", f"event {event_id}, a step, was accepted while somebody held the lease", [call]


def _attempts(answers: OrderAnswers) -> Found:
    rows = {(row["step_id"], row["idempotency_key"]): row for row in answers.order.attempts}
    by_id = {row["step_attempt_id"]: row for row in answers.order.attempts}
    for key, row in rows.items():
        calls = answers.starts.get(key, [])
        if not any(call.fate != "refused" for call in calls):
            yield "ghost", f"attempt {row['step_attempt_id']} was refused or never asked for", calls
    for key, calls in answers.starts.items():
        told = [call for call in calls if call.fate == "acknowledged"]
        if told and key not in rows:
            yield "lost", f"start {key} was acknowledged and is not there", told
        for call in told if key in rows else ():
            for column in ("step_attempt_id", "attempt_index", "started_at"):
                if (call.rows or [])[0][column] != moment(rows[key][column]):
                    yield "replay", f"start {key} was told another {column}", [call]
    for call in answers.finishes:
        row = by_id.get(call.args["step_attempt_id"])
        if call.fate == "acknowledged" and (row is None or row["attempt_status"] == "RUNNING"):
            yield "lost", f"finish of {call.args['step_attempt_id']} was acknowledged and is not there", [call]
        elif call.fate == "acknowledged" and row is not None:
            answer = (call.rows or [])[0]
            if (answer["action"], answer["next_due_at"]) != _decision(row):
                yield "replay", f"finish of {row['step_attempt_id']} was told {answer}, its row says {_decision(row)}", [call]
            if row["finish_idempotency_key"] != call.args["idempotency_key"]:
                yield "lost", f"finish of {row['step_attempt_id']} is that of another call", [call]
    finished = {call.args["step_attempt_id"] for call in answers.finishes if call.fate != "refused"}
    for row in by_id.values():
        if row["finish_idempotency_key"] is not None and row["step_attempt_id"] not in finished:
            yield "ghost", f"attempt {row['step_attempt_id']} was finished by nobody", []


def _decision(row: Row) -> tuple[str, str | None]:
    """Contract §8: what follows an attempt that is over."""
    if row["attempt_status"] == "SUCCEEDED":
        action = "DONE"
    elif row["next_retry_at"] is not None:
        action = "RETRY_AT"
    elif row["attempt_status"] == "FAILED" and row["attempt_index"] <= row["max_retries"]:
        action = "WAIT"
    else:
        action = "FAIL"
    return action, moment(row["next_retry_at"])


def _reads(answers: OrderAnswers) -> Found:
    """Every row that was read is a state that was, and none is older than what was known before."""
    folded = states(answers.order)
    events = [event["work_order_event_id"] for event in answers.order.ledger]
    floor = _Floor(answers)
    for call in answers.reads:
        # What a transaction reads of itself and undoes was never there for others.
        own = call.transaction.fate != "acknowledged" and _wrote_before(call, answers.place[1])
        if call.rows is None or own:
            continue
        if call.op == "events":
            seen = [row["work_order_event_id"] for row in call.rows]
            if seen != events[: len(seen)]:
                yield "read", f"events were read as {seen[-3:]}, which they never were", [call]
            last = len(seen)
        elif not call.rows:
            last = 0
        else:
            row = call.rows[0]
            if row["tenant_id"] != answers.place[0]:
                yield "read", f"a row of tenant {row['tenant_id']} was read", [call]
                continue
            last = row["last_seq"]
            if not 1 <= last <= len(folded) or not _is(row, folded[last - 1]):
                yield "read", f"the order was read at seq {last} as it never was", [call]
        known, by = floor.before(call)
        if last < known:
            yield "read", f"seq {last} was read after seq {known} was known", [call, *by]


def _is(row: Row, state: State) -> bool:
    told = {**state, "correlation_id": str(state["correlation_id"])}
    return all(equal(row[name], moment(value)) for name, value in told.items())


def _wrote_before(call: Call, order: str) -> bool:
    return any(
        each.step < call.step and each.op not in ("get", "events") and order in orders_of(each)
        for each in call.transaction.calls
    )


class _Floor:
    """Which seq everybody could know of at a moment."""

    def __init__(self, answers: OrderAnswers) -> None:
        known: list[tuple[int, int, Call]] = []
        for write in answers.writes.values():
            for call, index, _ in write.wishes:
                if call.op == "append" and call.settled is not None:
                    known.append((call.settled, (call.rows or [])[index]["work_order_seq"], call))
        for call in answers.reads:
            if call.settled is not None and call.rows:
                last = call.rows[-1].get("last_seq") or call.rows[-1].get("work_order_seq") or 0
                known.append((call.settled, last, call))
        self._known = sorted(known, key=lambda each: each[0])
        self._highest: list[tuple[int, int, Call]] = []
        for at, seq, call in self._known:
            if not self._highest or seq > self._highest[-1][1]:
                self._highest.append((at, seq, call))

    def before(self, call: Call) -> tuple[int, list[Call]]:
        """Return the highest seq that was known before the call's snapshot was taken, and by which call."""
        sees_from = call.sent if call.transaction.isolation in ("autocommit", "READ COMMITTED") else call.transaction.began
        best: tuple[int, list[Call]] = (0, [])
        for at, seq, by in self._highest:
            if at >= sees_from:
                break
            best = seq, [by]
        return best


def _unknown_order(answers: OrderAnswers) -> Found:
    """Nobody is told that there is no such order once its creation is known."""
    floor = _Floor(answers)
    for call in answers.calls:
        known, by = floor.before(call)
        if call.sqlstate == "SL016" and known and len(orders_of(call)) == 1:
            yield "read", f"the order was said not to be there after seq {known} was known", [call, *by]


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
                write = answers[place].writes[_mark_of(event)]
                others = [each for each, _, _ in write.wishes if each.transaction is not transaction]
                if all(each.fate == "refused" for each in others):
                    there[place, _mark_of(event)] = bool(write.rows)
        if len({*there.values()}) > 1:
            lacking = [f"{place[1]} {mark}" for (place, mark), is_there in there.items() if not is_there]
            subject = f"transaction {transaction.client}/{transaction.number}"
            yield Finding("torn", transaction.tenant, subject, f"only a part is there, without {lacking}")
