"""The rows and reports that come back, each a frozen type (contract §2 and §14)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from selene_core.contract.enums import (
    AttemptStatus,
    ConversationRole,
    ConversationSource,
    FeedEventType,
    IdentityStatus,
    LeaseState,
    PrivacyScope,
    RetryAction,
    SessionState,
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import IDEMPOTENCY_REPLAY_CODE, ContractViolation
from selene_core.contract.rules import EVENT_RULES


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What append did with one event (contract §4)."""

    work_order_event_id: int
    work_order_seq: int
    replayed: bool
    created_at: datetime

    @property
    def code(self) -> str | None:
        """The code of a replay; None for a new event."""
        return IDEMPOTENCY_REPLAY_CODE if self.replayed else None


@dataclass(frozen=True, slots=True)
class Created:
    """The work order that create made, or had made already, and what append did (contract §14)."""

    work_order_id: str
    work_order_event_id: int
    work_order_seq: int
    replayed: bool
    created_at: datetime

    @property
    def code(self) -> str | None:
        """The code of a replay; None for a new order."""
        return IDEMPOTENCY_REPLAY_CODE if self.replayed else None


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """The state of a work order: a row of os_core.work_orders_current (contract §2)."""

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
    updated_bucket: datetime | None = None
    """last_updated_at, rounded down to five minutes: what the indexes by recency hold."""
    queued_at: datetime | None = None
    steps_due_at: datetime | None = None


class PendingCursor(NamedTuple):
    """The last order of the previous page of pending work orders, by (last_updated_at, last_event_id)."""

    last_updated_at: datetime
    last_event_id: int


def check_pending_cursor(value: object) -> PendingCursor:
    """Return the cursor of a work order, or the cursor itself; raises ContractViolation (contract §9)."""
    if isinstance(value, WorkOrder):
        return PendingCursor(value.last_updated_at, value.last_event_id)
    if not (isinstance(value, tuple) and len(value) == 2):
        raise ContractViolation(field="after", rule="must be a WorkOrder or a PendingCursor")
    return PendingCursor(
        EVENT_RULES["occurred_at"].check("after.last_updated_at", value[0]),
        EVENT_RULES["expected_seq"].check("after.last_event_id", value[1]),
    )


class OrderCursor(NamedTuple):
    """The last order of the previous page of list_orders(), by (created_at, work_order_id)."""

    created_at: datetime
    work_order_id: str


def check_order_cursor(value: object) -> OrderCursor:
    """Return the cursor of a work order, or the cursor itself; raises ContractViolation (contract §9)."""
    if isinstance(value, WorkOrder):
        return OrderCursor(value.created_at, value.work_order_id)
    if not (isinstance(value, tuple) and len(value) == 2):
        raise ContractViolation(field="after", rule="must be a WorkOrder or an OrderCursor")
    return OrderCursor(
        EVENT_RULES["occurred_at"].check("after.created_at", value[0]),
        EVENT_RULES["work_order_id"].check("after.work_order_id", value[1]),
    )


def check_statuses(value: object, without: frozenset[WorkOrderStatus] = frozenset()) -> list[str]:
    """Return one or more statuses, each once; raises ContractViolation (contract §9)."""
    allowed = [status.value for status in WorkOrderStatus if status not in without]
    given: list[object] = []
    if isinstance(value, Iterable) and not isinstance(value, str):
        given = [*islice(value, 100)]  # it may have no end
    if not given or not all(isinstance(status, str) and status in allowed for status in given):
        raise ContractViolation(field="statuses", rule=f"must be one or more of {', '.join(allowed)}")
    return [status for status in allowed if status in given]


@dataclass(frozen=True, slots=True)
class WorkOrderEvent:
    """An event: a row of os_core.work_order_ledger (contract §2)."""

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
    event_hash: str


@dataclass(frozen=True, slots=True)
class FeedEvent(WorkOrderEvent):
    """An event with its position in the tenant's feed: 1, 2, 3, … without gaps (contract §16).

    A position may hold the erasure of a person instead (contract §18). Then `event_type` is SUBJECT_ERASED,
    `subject_id` names the person, `reason_code` and `created_at` are the erasure's, and what is said of work
    orders is None.
    """

    work_order_event_id: int | None  # type: ignore[assignment]  # None for an erasure, as what follows
    work_order_id: str | None  # type: ignore[assignment]
    work_order_seq: int | None  # type: ignore[assignment]
    correlation_id: UUID | None  # type: ignore[assignment]
    turn_id: int | None  # type: ignore[assignment]
    event_type: WorkOrderEventType | FeedEventType  # type: ignore[assignment]
    work_order_status: WorkOrderStatus | None  # type: ignore[assignment]
    feed_position: int

    @property
    def subject_id(self) -> str | None:
        """The person that was erased; None for an event."""
        return self.payload["subject_id"] if self.event_type is FeedEventType.SUBJECT_ERASED else None


@dataclass(frozen=True, slots=True)
class FeedConsumer:
    """Where a consumer of a tenant's feed stands (contract §16).

    `behind` counts the positions after its place and the events that have none yet (up to 10,000 of these).
    `waiting_since` is when the first of them was appended; None if there is none.
    """

    consumer: str
    feed_position: int
    last_position: int
    behind: int
    waiting_since: datetime | None
    lease_owner_id: str | None
    lease_expires_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class FeedProblem:
    """What is wrong with a tenant's feed, and at which position, event or consumer (contract §16)."""

    feed_position: int | None
    work_order_event_id: int | None
    work_order_id: str | None
    consumer: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """How many work orders and events a rebuild folded, and how many rows it changed (contract §5)."""

    work_orders: int
    events: int
    changed: int


@dataclass(frozen=True, slots=True)
class DriftedOrder:
    """A work order whose projection is not the fold of its ledger (contract §5)."""

    work_order_id: str
    problem: str


@dataclass(frozen=True, slots=True)
class BrokenChain:
    """An event whose hash is not that of its columns and of the event before (contract §17)."""

    work_order_id: str
    work_order_seq: int
    problem: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease, as it was when it was read (contract §2).

    Only its holder knows `token`: current() returns None for it. `fence` grows with every lease of the work
    order. Send it along to other systems, so that they can refuse a former holder.
    """

    lease_id: UUID
    tenant_id: str
    work_order_id: str
    lease_owner_id: str
    token: str | None = field(repr=False)
    lease_state: LeaseState
    fence: int
    acquired_at: datetime
    renewed_at: datetime | None
    lease_expires_at: datetime
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class HeldLease(Lease):
    """A lease with its token: what acquire() and renew() return to the holder."""

    token: str = field(repr=False)


class Claim(NamedTuple):
    """What claim() returns: a lease with its token, and the work order that it is on (contract §9)."""

    lease: HeldLease
    work_order: WorkOrder


@dataclass(frozen=True, slots=True)
class StepAttempt:
    """An attempt: a row of os_core.work_order_step_attempts (contract §2)."""

    step_attempt_id: int
    tenant_id: str
    work_order_id: str
    step_id: str
    attempt_index: int
    attempt_status: AttemptStatus
    timeout_ms: int
    max_retries: int
    retry_backoff_ms: int
    next_retry_at: datetime | None
    started_at: datetime
    finished_at: datetime | None
    reason_code: int | None
    idempotency_key: str
    finish_idempotency_key: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What follows a finished attempt (contract §8).

    `next_due_at` is set with RETRY_AT only. `next_attempt_index` is the index of the next attempt with
    RETRY_AT, of this attempt with WAIT, and None with DONE and FAIL.
    """

    action: RetryAction
    next_due_at: datetime | None
    next_attempt_index: int | None


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """A user: a row of os_core.identities (contract §2)."""

    tenant_id: str
    user_id: str
    speaker_id: str | None
    primary_language: str | None
    status: IdentityStatus
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Device:
    """A user's device: a row of os_core.devices (contract §2)."""

    tenant_id: str
    device_id: str
    user_id: str
    device_type: str
    last_seen_at: datetime
    audio_profile_ref: str | None


@dataclass(frozen=True, slots=True)
class UserSession:
    """A user's session: a row of os_core.sessions (contract §2)."""

    tenant_id: str
    session_id: str
    user_id: str
    device_id: str
    session_state: SessionState
    opened_at: datetime
    last_activity_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What append did with a turn: it was written, or `replayed` if it was there already."""

    conversation_turn_id: int
    turn_id: int
    text_hash: str
    created_at: datetime
    replayed: bool


@dataclass(frozen=True, slots=True)
class ConversationTurn:
    """A turn, as the roles may read it (contract §2).

    If a tombstone hides the turn, `text` is None, `tombstoned_by_conversation_turn_id` names the tombstone,
    and `tombstone_reason_code` is its reason. The text of a tombstone itself is "". If a text was erased with
    its user's data, `text` is None and there is no tombstone.
    """

    conversation_turn_id: int
    tenant_id: str
    correlation_id: UUID
    turn_id: int
    session_id: str | None
    user_id: str
    device_id: str | None
    role: ConversationRole
    source: ConversationSource
    text: str | None = field(repr=False)
    text_hash: str
    privacy_scope: PrivacyScope
    created_at: datetime
    idempotency_key: str | None
    tombstone_of_conversation_turn_id: int | None
    tombstone_reason_code: int | None
    tombstoned_by_conversation_turn_id: int | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """What erase_subject did: a row of os_core.subject_erasures (contract §18)."""

    erasure_id: int
    subject_id: str
    erased_at: datetime
    values_erased: int
    texts_erased: int
    replayed: bool
