"""The calls whose instructions are counted: every event type, replays, refusals, batches, leases.

An event finds its order as most do: written to a moment ago, in the bucket of now, with the event's status.
Where a row's name says otherwise, or the event type changes the status, the update is not HOT.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from psycopg.sql import Literal

from benchmarks import bare
from benchmarks.events import TENANT, created, event, field_set, held_for_a_person, orders, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.events import Event, Order

_LEASE: Final = "{}-0123456789abcdef"  # its token
# With the chain and the feed.
_SINGLE: Final = 1.60e6
_OTHER: Final = 1.65e6
_REPLAY: Final = 1.20e6
_BATCH: Final = 0.65e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of call. Call number n has orders of its own, brought to where the call finds them.

    `before` happened in an earlier bucket. `then` is said to all orders at the beginning of every run.
    """

    name: str
    call_of: Callable[[Sequence[Order], int], str]
    before: Sequence[Callable[[Order], Event]] = (created,)
    then: Callable[[Order], str] | None = None
    orders_in_call: int = 1
    events_in_call: int = 1
    same_orders: bool = False
    refusal: str | None = None
    goal: float | None = None
    group: str = field(init=False)

    def __post_init__(self) -> None:
        # The ids of all cases are equally long: a longer one costs more.
        object.__setattr__(self, "group", f"{zlib.crc32(self.name.encode()):08x}")

    def orders(self, number: int) -> list[Order]:
        """Name the orders of a call."""
        return orders(f"{self.group}.{0 if self.same_orders else number:02}", self.orders_in_call)

    def events_before(self, number: int) -> list[Event]:
        """Compose the events that bring a call's orders to where it finds them."""
        if self.same_orders and number > 0:
            return []
        return [make(order) for order in self.orders(number) for make in self.before]

    def statements_before(self, calls: int) -> list[str]:
        """Compose what is said to the orders of so many calls, just before the calls."""
        return [self.then(order) for n in range(calls) for order in self.orders(n)] if self.then else []

    def call(self, number: int) -> str:
        """Compose the statement of a call."""
        return self.call_of(self.orders(number), number)


def _execute(name: str, *arguments: object) -> str:
    return f"EXECUTE {name}({', '.join(Literal(each).as_string() for each in arguments)})"


def _append(events: Sequence[Event]) -> str:
    return _execute("append", TENANT, wire(events))


def _single(make: Callable[[Order], Event]) -> Callable[[Sequence[Order], int], str]:
    return lambda some, _number: _append([make(some[0])])


def _of(seq: int, event_type: str, status: str, **payload: Any) -> Callable[[Order], Event]:
    return lambda order: event(order, seq, event_type, status, payload)


_CONFLICT: Final[Event] = {"field_key": "place"}
_ASKED: Final[Event] = {"field_key": "date", "prompt_dedupe_key": "date#1"}
_REQUEST: Final[Event] = {"request_id": "request-1", "target_user_id": "user_17"}
_VALUE: Final[Event] = {"field_key": "activity", "value": "step 2"}
_SET: Final = _of(2, "FIELD_SET", "EXECUTING", **_VALUE)
_EXECUTING: Final = _of(2, "STATUS_CHANGED", "EXECUTING")
_REQUESTED: Final = _of(2, "EXTERNAL_APPROVAL_REQUESTED", "CONFIRM", **_REQUEST)
_CANCELED: Final = _of(2, "WORK_ORDER_CANCELED", "CANCELED")


def _touch(status: str) -> Callable[[Order], str]:
    """Write to an order, so that it has this status, in the bucket of now."""
    return lambda order: _append([_of(90, "FIELD_SET", status, field_key="activity", value="step 1")(order)])


def _type(
    name: str,
    seq: int,
    status: str,
    *before: Callable[[Order], Event],
    row: str | None = None,
    found: str | None = None,
    goal: float | None = _OTHER,
    **payload: Any,
) -> Case:
    """Make the case of an event type on an order that it finds with this status, else with the event's."""
    return Case(
        name=row or name,
        call_of=_single(_of(seq, name, status, **payload)),
        before=(created, *before),
        then=_touch(found or status),
        goal=goal,
    )


def _refusal(name: str, code: str, make: Callable[[Order], Event], *before: Callable[[Order], Event]) -> Case:
    call = _single(make)
    return Case(name=f"refused: {name}", call_of=call, before=(created, *before), refusal=code)


def _with(make: Callable[[Order], Event], **given: Any) -> Callable[[Order], Event]:
    return lambda order: {**make(order), **given}


def _batch(name: str, of_orders: int, of_each: int) -> Case:
    def call(some: Sequence[Order], number: int) -> str:
        seqs = range(2 + number * of_each, 2 + (number + 1) * of_each)
        return _append([field_set(order, seq) for order in some for seq in seqs])

    return Case(
        name=name,
        call_of=call,
        orders_in_call=of_orders,
        events_in_call=of_orders * of_each,
        same_orders=True,
        goal=_BATCH if of_orders * of_each == 100 else None,
    )


def _lease(order: Order) -> str:
    ids = (TENANT, order.work_order_id, "worker-1", _LEASE.format(order.work_order_id), 3_600_000)
    return f"SELECT * FROM os_core.acquire_lease({', '.join(Literal(each).as_string() for each in ids)})"


def _token_call(function: str, *rest: object) -> Callable[[Sequence[Order], int], str]:
    def call(some: Sequence[Order], _number: int) -> str:
        order = some[0].work_order_id
        given = ", ".join(Literal(each).as_string() for each in (TENANT, order, _LEASE.format(order), *rest))
        return f"SELECT * FROM os_core.{function}({given})"

    return call


def _bare(order: Order, seq: int) -> str:
    given = bare.arguments(field_set(order, seq))
    return _execute("set_field", *(given[name] for name in bare.SET_FIELD_NAMES))


def _without_time(some: Sequence[Order], _number: int) -> str:
    return _append([{name: value for name, value in _SET(some[0]).items() if name != "occurred_at"}])


def _held(order: Order, seq: int) -> Event:
    return held_for_a_person(_of(seq, "FIELD_SET", "EXECUTING", **_VALUE)(order))


CASES: Final[Sequence[Case]] = (
    Case(
        name="bare insert + update",
        call_of=lambda some, _number: _bare(some[0], 3),
        then=lambda order: _bare(order, 2),
    ),
    Case(
        name="WORK_ORDER_CREATED",
        call_of=_single(created),
        before=(),
        goal=_OTHER,
    ),
    _type("FIELD_SET", 2, "EXECUTING", **_VALUE, goal=_SINGLE),
    Case(name="FIELD_SET without occurred_at", call_of=_without_time, then=_touch("EXECUTING"), goal=_SINGLE),
    Case(
        name="FIELD_SET, one hot order",
        call_of=lambda some, number: _append([field_set(some[0], 3 + number)]),
        before=(created, _EXECUTING),
        then=_touch("EXECUTING"),
        same_orders=True,
        goal=_SINGLE,
    ),
    _type("FIELD_SET", 2, "EXECUTING", row="FIELD_SET, status changes", found="DRAFT", goal=None, **_VALUE),
    Case(
        name="FIELD_SET, a person's value",
        call_of=_single(lambda order: held_for_a_person(_SET(order))),
        before=(created, lambda order: held_for_a_person(field_set(order, 80))),
        then=_touch("EXECUTING"),
    ),
    Case(
        name="FIELD_SET, a value that the person has",
        call_of=_single(lambda order: _held(order, 2)),
        before=(created, lambda order: _held(order, 80)),
        then=_touch("EXECUTING"),
    ),
    Case(
        name="FIELD_SET, bucket crossed",
        call_of=_single(_of(3, "FIELD_SET", "EXECUTING", **_VALUE)),
        before=(created, _EXECUTING),
    ),
    _type("FIELD_PROMPTED", 2, "CLARIFY", **_ASKED),
    _type("FIELD_CONFLICT_DETECTED", 2, "CLARIFY", **_CONFLICT, candidates=["Oslo", "Rome"]),
    _type(
        "FIELD_CONFLICT_RESOLVED",
        3,
        "CLARIFY",
        _of(2, "FIELD_CONFLICT_DETECTED", "CLARIFY", **_CONFLICT),
        **_CONFLICT,
        value="Rome",
    ),
    _type("STATUS_CHANGED", 2, "CONFIRM", found="DRAFT", goal=_SINGLE),
    _type("STATUS_CHANGED", 2, "CONFIRM", row="STATUS_CHANGED to the same status", goal=_SINGLE),
    _type("STEP_STARTED", 2, "EXECUTING", resource="table-4"),
    _type("STEP_FINISHED", 2, "EXECUTING", resource="table-4"),
    _type("STEP_FAILED", 2, "EXECUTING", resource="table-4"),
    _type("STEP_RETRY_SCHEDULED", 2, "EXECUTING", next_retry_at="2026-02-01T00:00:00Z"),
    _type("EXTERNAL_APPROVAL_REQUESTED", 2, "CONFIRM", **_REQUEST),
    _type("EXTERNAL_APPROVAL_WAIT_NOTIFIED", 3, "CONFIRM", _REQUESTED, request_id="request-1"),
    _type("EXTERNAL_APPROVAL_RESOLVED", 3, "CONFIRM", _REQUESTED, request_id="request-1", outcome="APPROVED"),
    _type("WORK_ORDER_CANCELED", 2, "CANCELED", found="DRAFT"),
    Case(name="replay", call_of=_single(_SET), before=(created, _SET), goal=_REPLAY),
    Case(
        name="replay, one hot order",
        call_of=_single(_SET),
        before=(created, _SET),
        same_orders=True,
        goal=_REPLAY,
    ),
    Case(
        name="replay on an ended order",
        call_of=_single(_SET),
        before=(created, _SET, _of(3, "WORK_ORDER_CANCELED", "CANCELED")),
        goal=_REPLAY,
    ),
    Case(name="replay of the creation", call_of=_single(created), goal=_REPLAY),
    _refusal("contract", "SL001", _of(2, "FIELD_SET", "CLARIFY", field_key="place")),
    _refusal("other content", "SL005", _with(_SET, turn_id=9), _SET),
    _refusal("expected_seq", "SL006", _with(_SET, expected_seq=7)),
    _refusal("ended order", "SL007", _of(3, "STATUS_CHANGED", "DONE"), _CANCELED),
    _refusal(
        "prompt again",
        "SL008",
        _of(3, "FIELD_PROMPTED", "CLARIFY", **_ASKED),
        _of(2, "FIELD_PROMPTED", "CLARIFY", **_ASKED),
    ),
    _refusal("approval pending", "SL009", _of(3, "STEP_STARTED", "CONFIRM"), _REQUESTED),
    Case(
        name="refused: leased",
        call_of=_single(_of(2, "STEP_STARTED", "EXECUTING")),
        then=_lease,
        refusal="SL010",
    ),
    Case(name="refused: unknown order", call_of=_single(_SET), before=(), refusal="SL016"),
    _batch("event of a batch: 2 of 2 orders", 2, 1),
    _batch("event of a batch: 10 of 10 orders", 10, 1),
    _batch("event of a batch: 100 of 100 orders", 100, 1),
    _batch("event of a batch: 100 of 10 orders", 10, 10),
    Case(name="acquire_lease", call_of=lambda some, _number: _lease(some[0]), then=_touch("DRAFT")),
    Case(name="renew_lease", call_of=_token_call("renew_lease", 3_600_000), then=_lease),
    Case(name="release_lease", call_of=_token_call("release_lease"), then=_lease),
)
