"""Show work orders as text, one or a few lines for each fact, and as JSON."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from selene_core.cli.page import Page
from selene_core.contract.frozen_json import thaw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from selene_core.contract.rows import (
        ConversationTurn,
        FeedConsumer,
        FeedEvent,
        StepAttempt,
        WorkOrder,
        WorkOrderEvent,
    )

_WHOLE_PAGE = Page()


def counted(count: int, what: str) -> str:
    """Return a number of things in words: 1 event, 2,000 events."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def to_json(value: Any) -> str:
    """Return dataclasses, mappings and lists of them as a line of JSON in ASCII, times as RFC 3339 in UTC."""
    return json.dumps(value, default=plain)


def plain(value: Any) -> Any:
    """Return what stands in JSON for a value that JSON does not know."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def state_lines(order: WorkOrder, *, held: bool | None = None, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return the state of a work order, a line for each fact; `held`: whether its lease is held, if known."""
    for fact in _facts(order, held):
        yield from page.fold(fact, page.fact_indent)
    for key, value in sorted(order.fields_json.items()):
        yield from page.cut(f"  {key} = {inline(value)}", page.fact_indent)
    for prompt in _prompt_lines(order):
        yield from page.fold(prompt, page.fact_indent)


def _facts(order: WorkOrder, held: bool | None) -> Iterator[str]:
    yield f"{order.work_order_id}  {order.work_order_status}"
    yield f"  tenant      {order.tenant_id}"
    yield f"  thread      {order.correlation_id}, turn {order.turn_id}"
    if order.requester_user_id:
        yield f"  requester   {order.requester_user_id}"
    yield f"  created     {_time(order.created_at)}"
    yield f"  updated     {_time(order.last_updated_at)}, event {order.last_event_id}, seq {order.last_seq}"
    if order.step_id:
        yield f"  step        {order.step_id}"
    if order.lease_owner_id:
        until = "" if order.lease_expires_at is None else f" until {_time(order.lease_expires_at)}"
        stands = "" if held is None else ", held" if held else ", expired"
        yield f"  lease       {order.lease_owner_id}{until}{stands}"
    yield from _approval_lines(order)


def _approval_lines(order: WorkOrder) -> Iterator[str]:
    if order.external_approval_pending:
        yield f"  waits for   approval {order.external_approval_request_id}"
        yield f"              from {order.external_approval_target_user_id}"
        until = order.external_approval_expires_at
        told = "told" if order.external_approval_notices else "not told yet"
        yield f"              {told}, {f'expires {_time(until)}' if until else 'does not expire'}"


def _prompt_lines(order: WorkOrder) -> Iterator[str]:
    """Say what was asked and not answered, and what is in conflict."""
    for key, conflict in sorted(order.conflicts_json.items()):
        yield f"  {key}: in conflict, {'asked once' if conflict['asked'] else 'not asked yet'}"
    for key, asked in sorted(order.asked_fields_json.items()):
        if key not in order.fields_json and key not in order.conflicts_json:
            times = "once" if asked["attempts"] == 1 else f"{asked['attempts']} times"
            yield f"  {key}: asked {times}, last {asked['asked_at'][:19].replace('T', ' ')}Z"


def pending_lines(orders: Iterable[WorkOrder], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return pending work orders: since when, status, id; for whom; what each waits for."""
    for order in orders:
        head = f"{_time(order.last_updated_at)}  {order.work_order_status:<7}  {order.work_order_id}"
        yield from page.fold(head, 2)
        if order.requester_user_id:
            yield from page.fold(f"  requester   {order.requester_user_id}", page.fact_indent)
        for line in _approval_lines(order):
            yield from page.fold(line, page.fact_indent)


def attempt_lines(attempts: Iterable[StepAttempt], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return the attempts of a work order's steps, and from when on each may be retried."""
    for attempt in attempts:
        numbered = f"{attempt.step_id} {attempt.attempt_index} of {attempt.max_retries + 1}"
        since = _time(attempt.finished_at or attempt.started_at)
        yield from page.fold(f"  attempt     {numbered}: {attempt.attempt_status} {since}", page.fact_indent)
        if attempt.next_retry_at is not None:
            yield from page.fold(f"    retry     from {_time(attempt.next_retry_at)}", page.fact_indent)


def order_lines(orders: Iterable[WorkOrder], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return work orders: created when, status, id; for whom; whose lease; what each waits for."""
    for order in orders:
        head = f"{_time(order.created_at)}  {order.work_order_status:<9}  {order.work_order_id}"
        yield from page.fold(head, 2)
        if order.requester_user_id:
            yield from page.fold(f"  requester   {order.requester_user_id}", page.fact_indent)
        if order.lease_owner_id:
            yield from page.fold(f"  lease       {order.lease_owner_id}", page.fact_indent)
        for line in _approval_lines(order):
            yield from page.fold(line, page.fact_indent)


def lease_lines(leases: Iterable[Mapping[str, Any]], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return leases: until when, whether held, on which order; by whom, behind which fence."""
    for lease in leases:
        stands = "held" if lease["held"] else "expired"
        head = f"{_time(lease['lease_expires_at'])}  {stands:<7}  {lease['work_order_id']}"
        yield from page.fold(head, 2)
        since = f"since {_time(lease['acquired_at'])}, fence {lease['fence']}"
        yield from page.fold(f"  owner       {lease['lease_owner_id']}, {since}", page.fact_indent)


def due_lines(attempts: Iterable[StepAttempt], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return the steps to attempt again: due since when, on which order; which step, after which attempt."""
    for attempt in attempts:
        due = attempt.next_retry_at or attempt.started_at + timedelta(milliseconds=attempt.timeout_ms)
        yield from page.fold(f"{_time(due)}  {attempt.work_order_id}", 2)
        numbered = f"{attempt.step_id} {attempt.attempt_index} of {attempt.max_retries + 1}"
        over = attempt.attempt_status if attempt.finished_at else "past its timeout"
        yield from page.fold(f"  attempt     {numbered}: {over}", page.fact_indent)


def stats_lines(stats: Mapping[str, Any], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return the counts of a tenant."""
    for status, count in stats["work_orders"].items():
        yield f"{count:>12,}  {status}"
    for name in "active_leases", "expired_leases", "due_retries":
        yield f"{stats[name]:>12,}  {name.replace('_', ' ')}"
    if oldest := stats["oldest_pending"]:
        since = _time(oldest["last_updated_at"])
        yield from page.fold(f"The oldest pending: {oldest['work_order_id']}, unchanged since {since}", 2)


def timeline_lines(events: Iterable[WorkOrderEvent], *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return the events of a work order under the date of their day, one line each if it is long enough."""
    status = day = None
    for event in events:
        at = event.created_at.astimezone(UTC)
        if at.date() != day:
            day = at.date()
            yield f"       {day} (UTC)"
        yield from _event_lines(event, moved=event.work_order_status != status, page=page)
        status = event.work_order_status


def _event_lines(event: WorkOrderEvent, *, moved: bool, page: Page) -> Iterator[str]:
    to = f" → {event.work_order_status}" if moved else ""
    at = event.created_at.astimezone(UTC)
    head = f"{event.work_order_seq:>5}  {at:%H:%M:%S}  {event.event_type}{to}"
    details = ": ".join(filter(None, [event.step_id, summary(event)]))
    if page.holds(line := f"{head}  {details}".rstrip()):
        yield from page.fold(line)
    else:
        yield from page.fold(head, page.event_indent)
        yield from page.cut(" " * page.event_indent + details, page.event_indent, most=3)


def conversation_lines(
    events: Iterable[WorkOrderEvent],
    turns_of: Callable[[UUID], Iterable[ConversationTurn]],
    *,
    page: Page = _WHOLE_PAGE,
) -> Iterator[str]:
    """Return the conversations of a work order, a turn a line, each followed by the events that it led to."""
    threads: dict[UUID, list[tuple[int, list[str]]]] = {}
    status = None
    for event in events:
        moved = event.work_order_status != status
        lines = [*_event_lines(event, moved=moved, page=page.narrowed(2))]
        threads.setdefault(event.correlation_id, []).append((event.turn_id, lines))
        status = event.work_order_status
    for correlation_id, led_to in threads.items():
        yield f"thread {correlation_id}"
        waiting = deque(sorted(led_to, key=lambda placed: placed[0]))
        for turn in turns_of(correlation_id):
            while waiting and waiting[0][0] < turn.turn_id:
                yield from (f"  {line}" for line in waiting.popleft()[1])
            yield from page.cut(f"{turn.turn_id:>5}  {turn.role}: {_said(turn)}", 7)
        while waiting:
            yield from (f"  {line}" for line in waiting.popleft()[1])


def _said(turn: ConversationTurn) -> str:
    if turn.tombstone_of_conversation_turn_id is not None:
        return f"(hides {turn.tombstone_of_conversation_turn_id}, reason {turn.tombstone_reason_code})"
    if turn.text is None and turn.tombstoned_by_conversation_turn_id is None:
        return f"({turn.conversation_turn_id} is erased)"
    if turn.text is None:
        return f"({turn.conversation_turn_id} is hidden, reason {turn.tombstone_reason_code})"
    return " ".join(turn.text.split())


def feed_event_lines(event: FeedEvent, *, page: Page = _WHOLE_PAGE) -> Iterator[str]:
    """Return an event of the feed: its position, time and type, its work order, and what it says."""
    head = f"{event.feed_position:>7}  {_time(event.created_at)}  {event.event_type}"
    yield from page.fold(head, page.event_indent)
    if event.subject_id is not None:
        yield from page.cut(f"         {event.subject_id}, reason {event.reason_code}", 9, most=2)
        return
    details = ": ".join(filter(None, [event.step_id, summary(event)]))
    order = f"{event.work_order_id} {event.work_order_seq}  {details}".rstrip()
    yield from page.cut(f"         {order}", 9, most=2)


def feed_status_lines(
    consumers: Iterable[FeedConsumer], *, now: datetime, page: Page = _WHOLE_PAGE
) -> Iterator[str]:
    """Return where each consumer of a feed stands: position, head, how long it lags, and its lease."""
    for each in consumers:
        yield from page.fold(f"{each.consumer}  at {each.feed_position:,} of {each.last_position:,}", 2)
        waits = "nothing waits"
        if each.waiting_since is not None:
            age = max(0, round((now - each.waiting_since).total_seconds()))
            waits = f"{each.behind:,} behind, the first waits for {age:,} s"
        yield from page.fold(f"  lag         {waits}", page.fact_indent)
        if each.lease_owner_id and each.lease_expires_at:
            stands = "held" if each.lease_expires_at > now else "expired"
            held = f"{each.lease_owner_id} until {_time(each.lease_expires_at)}, {stands}"
            yield from page.fold(f"  lease       {held}", page.fact_indent)


def summary(event: WorkOrderEvent) -> str:
    """Return what an event's payload says, in one line."""
    payload = thaw(event.payload)
    payload.pop("steps_due_at", None)  # for claim; next_retry_at is for readers
    if event.lease_owner_id:
        until = "" if event.lease_expires_at is None else f" until {_time(event.lease_expires_at)}"
        return event.lease_owner_id + until
    if "field_key" in payload:
        return (
            f"{payload['field_key']} = {inline(payload['value'])}"
            if "value" in payload
            else payload["field_key"]
        )
    facts = {**payload.pop("fields", {}), **payload} if event.work_order_seq == 1 else payload
    return ", ".join(f"{key} = {inline(value)}" for key, value in facts.items())


def inline(value: Any) -> str:
    """Return a value as JSON, as people read it."""
    return json.dumps(value, ensure_ascii=False)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
