"""What readers saw: only what was, and never less than was known before."""

from soak.checker.answers import Found, OrderAnswers, orders_of
from soak.checker.finding import moment
from soak.checker.model import State, equal
from soak.checker.tables import Row
from soak.history import Call


def check_reads(answers: OrderAnswers) -> Found:
    """Every row that was read is a state that was, and none is older than what was known before."""
    folded = answers.states
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
                if call.settled is not None and (call.rows or [{}])[index].get("work_order_seq"):
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
        sees_from = (
            call.sent
            if call.transaction.isolation in ("autocommit", "READ COMMITTED")
            else call.transaction.began
        )
        best: tuple[int, list[Call]] = (0, [])
        for at, seq, by in self._highest:
            if at >= sees_from:
                break
            best = seq, [by]
        return best


def check_not_found(answers: OrderAnswers) -> Found:
    """Nobody is told that there is no such order once its creation is known."""
    floor = _Floor(answers)
    for call in answers.calls:
        known, by = floor.before(call)
        if call.sqlstate == "SL016" and known and len(orders_of(call)) == 1:
            yield "read", f"the order was said not to be there after seq {known} was known", [call, *by]
