"""A work order's time line as a picture: what `selene-core show` tells, from a real run of the demo."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text

from pictures.svg import Picture, text_width
from selene_core.cli import demo
from selene_core.cli.rendering import summary
from selene_core.contract.enums import WorkOrderStatus
from selene_core.contract.errors import WorkOrderNotFound
from selene_core.store.scope import tenant_scope
from selene_core.store.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from selene_core.contract.rows import WorkOrder, WorkOrderEvent

_START: Final = datetime(2027, 3, 1, 9, 0, tzinfo=UTC)
_STEP: Final = timedelta(seconds=20)
# The last renewal is over before another takes the lease, and the retry due when it starts.
_HELD: Final = {"LEASE_ACQUIRED": timedelta(minutes=2), "LEASE_RENEWED": timedelta(seconds=10)}
_ORDER: Final = "wo_0195500f-0c00-7000-8000-000000000001"
_THREAD: Final = UUID("00000000-0000-4000-8000-000000000001")
_VARYING: Final = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), str(_THREAD)),
    (
        re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,15}(Z|[+-][0-9:]{5})"),
        f"{_START:%Y-%m-%dT%H}:06:00Z",
    ),
    (re.compile(r"[0-9a-f]{64}"), f"{0:064}"),
)

_WIDTH: Final = 860
_MARGIN: Final = 28
_RAIL: Final = 128
_ROW: Final = 46
_COLOURS: Final = {
    WorkOrderStatus.DRAFT: "badge",
    WorkOrderStatus.CLARIFY: "asking",
    WorkOrderStatus.CONFIRM: "asking",
    WorkOrderStatus.EXECUTING: "working",
    WorkOrderStatus.DONE: "good",
    WorkOrderStatus.REFUSED: "bad",
    WorkOrderStatus.FAILED: "bad",
    WorkOrderStatus.CANCELED: "bad",
}


def timeline_svg(app: Engine, admin: Engine) -> str:
    """Play the demo on a migrated, empty database and draw the time line of its first work order."""
    if not demo.run(app, admin, lambda _line: None):
        raise RuntimeError("the demo did not hold: selene-core demo says what")
    with admin.connect() as conn:
        first = text(
            "SELECT tenant_id, work_order_id FROM os_core.work_order_ledger"
            " ORDER BY work_order_event_id LIMIT 1"
        )
        tenant_id, work_order_id = conn.execute(first).one()
    with tenant_scope(app, tenant_id) as conn:
        orders = WorkOrderRepository(conn)
        if (order := orders.get(work_order_id)) is None:
            raise WorkOrderNotFound(work_order_id=work_order_id)
        return _draw(*_fixed(order, [*orders.events(work_order_id)]))


def _fixed(order: WorkOrder, events: list[WorkOrderEvent]) -> tuple[WorkOrder, list[WorkOrderEvent]]:
    """Put fixed ids and times in the place of those that differ from run to run, in payloads too."""
    times = [_START + _STEP * position for position in range(len(events))]
    return (
        replace(
            order,
            work_order_id=_ORDER,
            correlation_id=_THREAD,
            fields_json=_steady(order.fields_json),
            created_at=times[0],
            last_updated_at=times[-1],
        ),
        [
            replace(
                event,
                work_order_id=_ORDER,
                payload=_steady(event.payload),
                lease_expires_at=event.lease_expires_at and at + _HELD[event.event_type],
                created_at=at,
            )
            for event, at in zip(events, times, strict=True)
        ],
    )


def _steady(value: Any) -> Any:
    match value:
        case dict():
            return {key: _steady(each) for key, each in value.items()}
        case list():
            return [_steady(each) for each in value]
        case str():
            for pattern, fixed in _VARYING:
                value = pattern.sub(fixed, value)
    return value


def _draw(order: WorkOrder, events: list[WorkOrderEvent]) -> str:
    picture = Picture(
        f"Time line of a work order: {order.work_order_status}",
        "; ".join(f"{event.work_order_seq} {event.event_type} {event.work_order_status}" for event in events),
    )
    picture.text("strong", _MARGIN, 36, order.work_order_id, size=16)
    picture.badge(
        _COLOURS[order.work_order_status],
        _MARGIN + text_width(order.work_order_id, 16) + 14,
        21,
        order.work_order_status,
        size=12,
    )
    for_whom = f"for {order.requester_user_id}, " if order.requester_user_id else ""
    picture.text("faint", _MARGIN, 58, f"tenant {order.tenant_id}, {for_whom}{_START:%d %B %Y}", size=12)
    top = 96
    for position, (event, after) in enumerate(zip(events, [*events[1:], None], strict=True)):
        y = top + _ROW * position
        if after is not None:
            picture.path("edge", [(_RAIL, y), (_RAIL, y + _ROW)])
        picture.text("faint", _MARGIN, y + 4, f"{event.created_at:%H:%M:%S}")
        picture.circle(_COLOURS[event.work_order_status], _RAIL, y, 7)
        x = _RAIL + 22.0
        picture.text("strong", x, y + 1, _words(event))
        x += text_width(_words(event)) + 12
        if position == 0 or events[position - 1].work_order_status != event.work_order_status:
            picture.badge(_COLOURS[event.work_order_status], x, y - 11, event.work_order_status)
        picture.text(
            "faint", _RAIL + 22, y + 17, _cut(": ".join(filter(None, [event.step_id, summary(event)])))
        )
    y = top + _ROW * len(events) + 4
    picture.path("rule", [(_MARGIN, y - 18), (_WIDTH - _MARGIN, y - 18)])
    picture.text("strong", _MARGIN, y + 4, "What is known at the end")
    for key, value in sorted(order.fields_json.items()):
        y += 20
        picture.text("text", _MARGIN, y + 4, _cut(f"{key} = {value}"))
    picture.text(
        "faint", _MARGIN, y + 30, "From a run of `selene-core demo`; ids and times are fixed.", size=11
    )
    return picture.render(_WIDTH, y + 30 + 20)


def _words(event: WorkOrderEvent) -> str:
    return event.event_type.replace("_", " ").capitalize()


def _cut(line: str) -> str:
    widest = int((_WIDTH - _MARGIN - _RAIL - 22) / text_width("x"))
    return line if len(line) <= widest else line[: widest - 1] + "…"
