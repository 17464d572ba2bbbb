"""The time line of a work order, from a real run of the demo."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text

from selene_core.cli import demo
from selene_core.cli.timeline import timeline_svg
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


def demo_svg(app: Engine, admin: Engine) -> str:
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
        order, events = _fixed(order, [*orders.events(work_order_id)])
        return timeline_svg(order, events, "From a run of `selene-core demo`; ids and times are fixed.")


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
