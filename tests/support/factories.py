"""Valid events, of which a test names only what it is about."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from selene_core.contract.enums import WorkOrderEventType, WorkOrderStatus
from selene_core.contract.events import WorkOrderLedgerEventInput

_Type = WorkOrderEventType
_Status = WorkOrderStatus

# A payload and a status that each event type accepts on an order in its usual state.
_USUAL: Mapping[WorkOrderEventType, tuple[WorkOrderStatus, Mapping[str, Any]]] = {
    _Type.WORK_ORDER_CREATED: (_Status.DRAFT, {}),
    _Type.FIELD_SET: (_Status.CLARIFY, {"field_key": "place", "value": "Oslo"}),
    _Type.FIELD_PROMPTED: (_Status.CLARIFY, {"field_key": "place", "prompt_dedupe_key": "place#1"}),
    _Type.FIELD_CONFLICT_DETECTED: (_Status.CLARIFY, {"field_key": "place"}),
    _Type.FIELD_CONFLICT_RESOLVED: (_Status.CLARIFY, {"field_key": "place", "value": "Oslo"}),
    _Type.STATUS_CHANGED: (_Status.CONFIRM, {}),
    _Type.STEP_STARTED: (_Status.EXECUTING, {}),
    _Type.STEP_FINISHED: (_Status.EXECUTING, {}),
    _Type.STEP_FAILED: (_Status.EXECUTING, {}),
    _Type.STEP_RETRY_SCHEDULED: (_Status.EXECUTING, {}),
    _Type.LEASE_ACQUIRED: (_Status.EXECUTING, {}),
    _Type.LEASE_RENEWED: (_Status.EXECUTING, {}),
    _Type.LEASE_RELEASED: (_Status.EXECUTING, {}),
    _Type.EXTERNAL_APPROVAL_REQUESTED: (_Status.CONFIRM, {"request_id": "ask-1", "target_user_id": "alice"}),
    _Type.EXTERNAL_APPROVAL_WAIT_NOTIFIED: (_Status.CONFIRM, {"request_id": "ask-1"}),
    _Type.EXTERNAL_APPROVAL_RESOLVED: (_Status.CONFIRM, {"request_id": "ask-1", "outcome": "APPROVED"}),
    _Type.WORK_ORDER_CANCELED: (_Status.CANCELED, {}),
}


def new_id(what: str = "order") -> str:
    """Return an id that nothing else has."""
    return f"{what}-{uuid4().hex}"


def correlation_of(work_order_id: str) -> UUID:
    """Return the correlation that the events of an order have here, unless a test says otherwise."""
    return uuid5(NAMESPACE_URL, work_order_id)


def columns(event_type: str, work_order_id: str | None = None, **given: Any) -> dict[str, Any]:
    """Compose an event's columns as typed values."""
    event_type = WorkOrderEventType(event_type)
    work_order_id = work_order_id or new_id()
    status, payload = _USUAL[event_type]
    return {
        "work_order_id": work_order_id,
        "correlation_id": correlation_of(work_order_id),
        "turn_id": 1,
        "event_type": event_type,
        "work_order_status": status,
        "reason_code": 1,
        "payload": dict(payload),
        **given,
    }


def event(event_type: str, work_order_id: str, **given: Any) -> WorkOrderLedgerEventInput:
    """Make an event of a work order."""
    return WorkOrderLedgerEventInput(**columns(event_type, work_order_id, **given))


def created(work_order_id: str | None = None, **given: Any) -> WorkOrderLedgerEventInput:
    """Make a work order's first event."""
    return WorkOrderLedgerEventInput(**columns(_Type.WORK_ORDER_CREATED, work_order_id, **given))


def wire(event_type: str, work_order_id: str | None = None, **given: Any) -> dict[str, Any]:
    """Make what the SQL function takes for an event; what the contract refuses passes through."""
    return {name: _plain(value) for name, value in columns(event_type, work_order_id, **given).items()}


def _plain(value: Any) -> Any:
    match value:
        case UUID():
            return str(value)
        case datetime():
            return value.isoformat()
        case WorkOrderEventType() | WorkOrderStatus():
            return value.value
        case _:
            return value
