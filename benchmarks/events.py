"""Synthetic work orders and their events, in the shape that the append function takes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.databases import Connection

TENANT: Final = "bench"
APPEND: Final = "SELECT * FROM os_core.append_work_order_events(%s, %s::jsonb)"
HELPDESK: Final = Path(__file__).parents[2] / "shared" / "data" / "helpdesk.events.jsonl.gz"

Event = dict[str, Any]


class Order(NamedTuple):
    """A work order's ids."""

    work_order_id: str
    correlation_id: UUID


class Batch(NamedTuple):
    """What one call of the append function gets."""

    tenant_id: str
    events: str


def orders(group: str, count: int) -> list[Order]:
    """Name some orders; another group has others."""
    ids = [f"wo_{group}_{number:06}" for number in range(count)]
    return [Order(work_order_id, uuid5(NAMESPACE_URL, work_order_id)) for work_order_id in ids]


def event(order: Order, seq: int, event_type: str, status: str, payload: Event) -> Event:
    """Compose the event that comes as number `seq` of its order."""
    return {
        "work_order_id": order.work_order_id,
        "correlation_id": str(order.correlation_id),
        "turn_id": seq,
        "event_type": event_type,
        "work_order_status": status,
        "reason_code": 2,
        "payload": payload,
        "idempotency_key": f"{order.work_order_id}:{seq}",
        "occurred_at": "2026-01-13T08:40:25.314159Z",
    }


def created(order: Order) -> Event:
    """Compose an order's first event."""
    fields = {"activity": "new", "place": "Oslo", "priority": 2}
    return event(order, 1, "WORK_ORDER_CREATED", "DRAFT", {"fields": fields, "requester_user_id": "user_17"})


def field_set(order: Order, seq: int) -> Event:
    """Compose the event that comes most: a field gets a new value."""
    return event(order, seq, "FIELD_SET", "EXECUTING", {"field_key": "activity", "value": f"step {seq}"})


def held_for_a_person(item: Event) -> Event:
    """Make an event's value one of a person who is known: a value that no other event has."""
    return _held(item, "user_17", f"{item['work_order_id']}: {item['payload']['value']}")


def held_again(item: Event) -> Event:
    """Make an event's value one that a person has already."""
    return _held(item, "user_17", "Anna")


def held_for_a_new_person(item: Event) -> Event:
    """Make an event's value the first of a person."""
    return _held(item, f"user.{item['idempotency_key']}", "Anna")


def _held(item: Event, subject: str, value: str) -> Event:
    payload = {**item["payload"], "value": {"$personal": {"subject": subject, "value": value}}}
    return {**item, "payload": payload}


def life(order: Order) -> list[Event]:
    """Compose ten events: asked, answered, confirmed, done."""
    return [
        created(order),
        event(order, 2, "FIELD_PROMPTED", "CLARIFY", {"field_key": "date", "prompt_dedupe_key": "date:1"}),
        event(order, 3, "FIELD_SET", "CLARIFY", {"field_key": "date", "value": "2026-02-01"}),
        event(
            order, 4, "FIELD_PROMPTED", "CLARIFY", {"field_key": "guests", "prompt_dedupe_key": "guests:1"}
        ),
        event(order, 5, "FIELD_SET", "CLARIFY", {"field_key": "guests", "value": 4}),
        event(order, 6, "FIELD_SET", "CLARIFY", {"field_key": "activity", "value": "book a table"}),
        event(order, 7, "STATUS_CHANGED", "CONFIRM", {}),
        event(order, 8, "STATUS_CHANGED", "EXECUTING", {"previous_status": "CONFIRM"}),
        event(order, 9, "STEP_STARTED", "EXECUTING", {"resource": "table-4"}),
        event(order, 10, "STEP_FINISHED", "DONE", {"resource": "table-4"}),
    ]


def wire(events: Sequence[Event]) -> str:
    """Write events as the append function's argument."""
    return json.dumps(events)


def batches(events: Iterable[Event], size: int, tenant_id: str = TENANT) -> Iterator[Batch]:
    """Cut one tenant's events into batches."""
    batch: list[Event] = []
    for item in events:
        batch.append(item)
        if len(batch) == size:
            yield Batch(tenant_id, wire(batch))
            batch = []
    if batch:
        yield Batch(tenant_id, wire(batch))


def append_all(conn: Connection, calls: Iterable[Batch]) -> None:
    """Append batch after batch."""
    for call in calls:
        conn.execute(APPEND, call, prepare=True).fetchall()


def helpdesk(copy: str, size: int) -> list[Batch]:
    """Read the help-desk log in batches of one tenant each, with ids that are this copy's own."""
    tenants: dict[str, list[Event]] = {}
    with gzip.open(HELPDESK, "rt", encoding="utf-8") as lines:
        for line in lines:
            item = json.loads(line)
            item["work_order_id"] += f".{copy}"
            item["correlation_id"] = str(uuid5(UUID(item["correlation_id"]), copy))
            tenants.setdefault(item.pop("tenant_id"), []).append(item)
    return [batch for tenant_id, events in tenants.items() for batch in batches(events, size, tenant_id)]
