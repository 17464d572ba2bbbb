"""A work order's time line as a picture: what `selene-core show` tells, for a page or a report."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Final

from selene_core.cli.page import Page
from selene_core.cli.rendering import inline, summary
from selene_core.cli.svg import CHARACTER, Picture, text_width
from selene_core.contract.enums import WorkOrderStatus

if TYPE_CHECKING:
    from selene_core.contract.rows import WorkOrder, WorkOrderEvent

_WIDTH: Final = 860
_MARGIN: Final = 28
_RAIL: Final = 128
_ROW: Final = 46
_BADGE: Final = 130  # beside the order's id
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


def timeline_svg(order: WorkOrder, events: list[WorkOrderEvent], note: str = "") -> str:
    """Draw the events of a work order and its state after them, times in UTC; `note` stands at the bottom."""
    picture = Picture(
        f"Time line of a work order: {order.work_order_status}",
        "; ".join(f"{event.work_order_seq} {event.event_type} {event.work_order_status}" for event in events),
    )
    _head(picture, order)
    top = 96
    status = None
    day = order.created_at.astimezone(UTC).date()
    for position, event in enumerate(events):
        y = top + _ROW * position
        if position < len(events) - 1:
            picture.path("edge", [(_RAIL, y), (_RAIL, y + _ROW)])
        at = event.created_at.astimezone(UTC)
        if at.date() != day:
            picture.text("faint", _MARGIN, y - 10, f"{(day := at.date())}")
        picture.text("faint", _MARGIN, y + 4, f"{at:%H:%M:%S}")
        picture.circle(_COLOURS[event.work_order_status], _RAIL, y, 7)
        _event(picture, event, y, moved=event.work_order_status != status)
        status = event.work_order_status
    y = top + _ROW * len(events) + 4
    picture.path("rule", [(_MARGIN, y - 18), (_WIDTH - _MARGIN, y - 18)])
    picture.text("strong", _MARGIN, y + 4, "What is known at the end")
    for key, value in sorted(order.fields_json.items()):
        y += 20
        picture.text("text", _MARGIN, y + 4, _cut(f"{key} = {inline(value)}", _MARGIN))
    if note:
        y += 30
        picture.text("faint", _MARGIN, y, _cut(note, _MARGIN), size=11)
    return picture.render(_WIDTH, y + 20)


def _head(picture: Picture, order: WorkOrder) -> None:
    # An id may have 128 characters.
    size = min(16.0, (_WIDTH - 2 * _MARGIN - _BADGE) / (len(order.work_order_id) * CHARACTER))
    picture.text("strong", _MARGIN, 36, order.work_order_id, size=size)
    beside = _MARGIN + text_width(order.work_order_id, size) + 14
    picture.badge(_COLOURS[order.work_order_status], beside, 21, order.work_order_status, size=12)
    for_whom = f"for {order.requester_user_id}, " if order.requester_user_id else ""
    day = f"{order.created_at.astimezone(UTC):%d %B %Y}"
    picture.text("faint", _MARGIN, 58, _cut(f"tenant {order.tenant_id}, {for_whom}{day}", _MARGIN), size=12)


def _event(picture: Picture, event: WorkOrderEvent, y: float, *, moved: bool) -> None:
    x, words = _RAIL + 22.0, event.event_type.replace("_", " ").capitalize()
    picture.text("strong", x, y + 1, words)
    if moved:
        status = event.work_order_status
        picture.badge(_COLOURS[status], x + text_width(words) + 12, y - 11, status)
    details = ": ".join(filter(None, [event.step_id, summary(event)]))
    picture.text("faint", x, y + 17, _cut(details, x))


def _cut(line: str, x: float) -> str:
    """Return what fits into a line from x on."""
    widest = int((_WIDTH - _MARGIN - x) / text_width("x"))
    return next(Page(widest).cut(line, 0), "")
