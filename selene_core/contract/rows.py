"""The rows and reports that come back: one frozen type for each (contract §2 and §14)."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from selene_core.contract.enums import (
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import IDEMPOTENCY_REPLAY_CODE, ContractViolation
from selene_core.contract.rules import EVENT_RULES


@dataclass(frozen=True, slots=True)
class AppendResult:
    """Hold what append did with one event (contract §4)."""

    work_order_event_id: int
    work_order_seq: int
    replayed: bool
    created_at: datetime

    @property
    def code(self) -> str | None:
        """Tell a replay by its code; None for a new event."""
        return IDEMPOTENCY_REPLAY_CODE if self.replayed else None


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """Hold one row of os_core.work_orders_current (contract §2)."""

    work_order_id: str
    tenant_id: str
    correlation_id: UUID
    turn_id: int
    work_order_status: WorkOrderStatus
    last_event_id: int
    last_seq: int
    last_reason_code: int
    last_updated_at: datetime
    created_at: datetime
    requester_user_id: str | None
    step_id: str | None
    step_input_hash: str | None
    lease_owner_id: str | None
    lease_token_hash: str | None = field(repr=False)
    lease_expires_at: datetime | None
    fields_json: dict[str, Any]
    asked_fields_json: dict[str, Any]
    resolved_fields_json: dict[str, Any]
    conflicts_json: dict[str, Any]
    prompt_dedupe_keys_json: dict[str, Any]
    external_approval_pending: bool
    external_approval_request_id: str | None
    external_approval_target_user_id: str | None
    external_approval_expires_at: datetime | None
    external_approval_notices: int
    last_state_change_seq: int


class PendingCursor(NamedTuple):
    """Hold the place after which a page of pending work orders begins: that of the last one before it."""

    last_updated_at: datetime
    last_event_id: int


def check_pending_cursor(value: object) -> PendingCursor:
    """Return the place of a work order or cursor; raises ContractViolation (contract §9)."""
    if isinstance(value, WorkOrder):
        return PendingCursor(value.last_updated_at, value.last_event_id)
    if not (isinstance(value, tuple) and len(value) == 2):
        raise ContractViolation(field="after", rule="must be a WorkOrder or a PendingCursor")
    return PendingCursor(
        EVENT_RULES["occurred_at"].check("after.last_updated_at", value[0]),
        EVENT_RULES["expected_seq"].check("after.last_event_id", value[1]),
    )


@dataclass(frozen=True, slots=True)
class WorkOrderEvent:
    """Hold one row of os_core.work_order_ledger (contract §2)."""

    work_order_event_id: int
    tenant_id: str
    work_order_id: str
    work_order_seq: int
    correlation_id: UUID
    turn_id: int
    event_type: WorkOrderEventType
    work_order_status: WorkOrderStatus
    reason_code: int
    step_id: str | None
    step_input_hash: str | None
    lease_owner_id: str | None
    lease_token_hash: str | None = field(repr=False)
    lease_expires_at: datetime | None
    payload: dict[str, Any]
    idempotency_key: str | None
    occurred_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """Count what a rebuild did (contract §5)."""

    work_orders: int
    events: int
    changed: int


@dataclass(frozen=True, slots=True)
class DriftedOrder:
    """Name a work order whose projection is not the fold of its ledger (contract §5)."""

    work_order_id: str
    problem: str
