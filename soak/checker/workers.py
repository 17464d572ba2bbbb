"""What workers were told of their leases and attempts, against what is there."""

from collections import defaultdict
from hashlib import sha256

from soak.checker.answers import Found, OrderAnswers
from soak.checker.finding import moment
from soak.checker.model import State
from soak.checker.tables import Row
from soak.history import Call


def check_leases(answers: OrderAnswers) -> Found:
    """A lease is there if its worker was told so, and its worker was told what is there."""
    rows = {row["lease_token_hash"]: row for row in answers.order.leases}
    events: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for event in answers.order.ledger:
        if event["event_type"].startswith("LEASE_"):
            events[event["lease_token_hash"], event["event_type"]].append(event)
    for token in {token for token, _ in events}:
        if token not in answers.leases:
            yield (
                "ghost",
                f"nobody asked for the lease of seq {rows[token]['fence'] if token in rows else '?'}",
                [],
            )
    for token, calls in answers.leases.items():
        for op, event_type in (
            ("acquire", "LEASE_ACQUIRED"),
            ("renew", "LEASE_RENEWED"),
            ("release", "LEASE_RELEASED"),
        ):
            asked = [call for call in calls if (call.op if call.op != "claim" else "acquire") == op]
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
                    yield (
                        "lease",
                        f"renew was told an expiry that no event has: {answer['lease_expires_at']}",
                        [call],
                    )


def _did(call: Call) -> bool:
    if call.op == "claim":
        return bool(call.rows)  # none: there was nothing to do
    return call.op != "release" or bool(call.rows and call.rows[0]["release_lease"])


def check_tokens(answers: OrderAnswers) -> Found:
    """Whoever wrote with a token held the lease at that moment; nobody else wrote STEP_* meanwhile."""
    order, folded = answers.order, answers.states
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


def check_attempts(answers: OrderAnswers) -> Found:
    """An attempt is there if its worker was told so, and its worker was told what is there."""
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
        if call.fate == "acknowledged":
            yield from _finish(call, by_id.get(call.args["step_attempt_id"]))
    finished = {call.args["step_attempt_id"] for call in answers.finishes if call.fate != "refused"}
    for row in by_id.values():
        if row["finish_idempotency_key"] is not None and row["step_attempt_id"] not in finished:
            yield "ghost", f"attempt {row['step_attempt_id']} was finished by nobody", []


def _finish(call: Call, row: Row | None) -> Found:
    said = f"finish of {call.args['step_attempt_id']}"
    if row is None or row["attempt_status"] == "RUNNING":
        yield "lost", f"{said} was acknowledged and is not there", [call]
        return
    told = (call.rows or [])[0]
    if (told["action"], told["next_due_at"]) != (decision := _decision(row)):
        yield "replay", f"{said} was told {told}, its row says {decision}", [call]
    if row["finish_idempotency_key"] != call.args["idempotency_key"]:
        yield "lost", f"{said} is that of another call", [call]


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
