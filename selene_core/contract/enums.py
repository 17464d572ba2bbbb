"""The enumerations: event types, statuses, and the words of the other tables (contract §2 and §3)."""

from enum import StrEnum
from typing import Final


class WorkOrderEventType(StrEnum):
    """What happened (contract §3)."""

    WORK_ORDER_CREATED = "WORK_ORDER_CREATED"
    FIELD_SET = "FIELD_SET"
    FIELD_PROMPTED = "FIELD_PROMPTED"
    FIELD_CONFLICT_DETECTED = "FIELD_CONFLICT_DETECTED"
    FIELD_CONFLICT_RESOLVED = "FIELD_CONFLICT_RESOLVED"
    STATUS_CHANGED = "STATUS_CHANGED"
    STEP_STARTED = "STEP_STARTED"
    STEP_FINISHED = "STEP_FINISHED"
    STEP_FAILED = "STEP_FAILED"
    STEP_RETRY_SCHEDULED = "STEP_RETRY_SCHEDULED"
    LEASE_ACQUIRED = "LEASE_ACQUIRED"
    LEASE_RENEWED = "LEASE_RENEWED"
    LEASE_RELEASED = "LEASE_RELEASED"
    EXTERNAL_APPROVAL_REQUESTED = "EXTERNAL_APPROVAL_REQUESTED"
    EXTERNAL_APPROVAL_WAIT_NOTIFIED = "EXTERNAL_APPROVAL_WAIT_NOTIFIED"
    EXTERNAL_APPROVAL_RESOLVED = "EXTERNAL_APPROVAL_RESOLVED"
    WORK_ORDER_CANCELED = "WORK_ORDER_CANCELED"


class WorkOrderStatus(StrEnum):
    """The status of a work order (contract §3)."""

    DRAFT = "DRAFT"
    CLARIFY = "CLARIFY"
    CONFIRM = "CONFIRM"
    EXECUTING = "EXECUTING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class ApprovalOutcome(StrEnum):
    """How an external approval ended (contract §3)."""

    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


class PromptAction(StrEnum):
    """What to do about the required fields (contract §6)."""

    ASK = "ASK"
    ASK_DIFFERENT_FIELD = "ASK_DIFFERENT_FIELD"
    SKIP = "SKIP"
    WAIT = "WAIT"
    STOP = "STOP"


class PromptReason(StrEnum):
    """Why a PromptDecision was made (contract §6)."""

    POLICY_APPROVAL_PENDING = "POLICY_APPROVAL_PENDING"
    POLICY_CONFLICT_REQUIRES_ONE_ASK = "POLICY_CONFLICT_REQUIRES_ONE_ASK"
    POLICY_NEXT_FIELD = "POLICY_NEXT_FIELD"
    POLICY_ALREADY_ASKED = "POLICY_ALREADY_ASKED"
    POLICY_FIELD_ALREADY_KNOWN = "POLICY_FIELD_ALREADY_KNOWN"


class LeaseState(StrEnum):
    """The state of a lease. An ACTIVE one may be past its expiry until somebody takes over (contract §2)."""

    ACTIVE = "ACTIVE"
    EXPIRED = "EXPIRED"
    RELEASED = "RELEASED"


class AttemptStatus(StrEnum):
    """The status of an attempt at a step (contract §2)."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


class AttemptOutcome(StrEnum):
    """How an attempt ended, as its worker reports it (contract §8)."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class RetryAction(StrEnum):
    """What follows a finished attempt (contract §8)."""

    DONE = "DONE"
    RETRY_AT = "RETRY_AT"
    FAIL = "FAIL"
    WAIT = "WAIT"


class IdentityStatus(StrEnum):
    """Whether a user is active (contract §2)."""

    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"


class SessionState(StrEnum):
    """The state of a session (contract §2)."""

    OPEN = "OPEN"
    ACTIVE = "ACTIVE"
    SOFT_CLOSED = "SOFT_CLOSED"
    SUSPENDED = "SUSPENDED"
    CLOSED = "CLOSED"


class ConversationRole(StrEnum):
    """Who speaks (contract §2)."""

    USER = "USER"
    SELENE = "SELENE"


class ConversationSource(StrEnum):
    """Where a turn's text comes from (contract §2)."""

    VOICE_TRANSCRIPT = "VOICE_TRANSCRIPT"
    TYPED_TEXT = "TYPED_TEXT"
    SELENE_OUTPUT = "SELENE_OUTPUT"
    TOMBSTONE = "TOMBSTONE"


class PrivacyScope(StrEnum):
    """For whom a turn is meant (contract §2)."""

    PUBLIC_CHAT = "PUBLIC_CHAT"
    PRIVATE_DELIVERY = "PRIVATE_DELIVERY"


PENDING_STATUSES: Final = frozenset({WorkOrderStatus.DRAFT, WorkOrderStatus.CLARIFY, WorkOrderStatus.CONFIRM})
TERMINAL_STATUSES: Final = frozenset(
    {WorkOrderStatus.DONE, WorkOrderStatus.REFUSED, WorkOrderStatus.FAILED, WorkOrderStatus.CANCELED}
)


class FeedEventType(StrEnum):
    """What a position of the feed holds that is no event of a work order (contract §16)."""

    SUBJECT_ERASED = "SUBJECT_ERASED"
