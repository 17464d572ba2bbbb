"""Errors: one class for each refusal, with an SQLSTATE of its own (contract §12).

    SeleneError
    ├── ContractViolation        SL001  OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED
    ├── TenantScopeViolation     SL002  OS_WORK_ORDER_TENANT_SCOPE_VIOLATION
    ├── AppendOnlyViolation      SL003  OS_WORK_ORDER_APPEND_ONLY_VIOLATION
    ├── CancelInvalidState       SL004  OS_WORK_ORDER_CANCEL_INVALID_STATE
    ├── IdempotencyConflict      SL005  OS_WORK_ORDER_IDEMPOTENCY_CONFLICT
    ├── ConcurrencyConflict      SL006  OS_WORK_ORDER_CONCURRENCY_CONFLICT         retryable
    ├── InvalidTransition        SL007  OS_WORK_ORDER_INVALID_TRANSITION
    ├── PromptSuppressed         SL008  OS_WORK_ORDER_PROMPT_SUPPRESSED
    ├── ExternalApprovalPending  SL009  OS_WORK_ORDER_EXTERNAL_APPROVAL_PENDING
    ├── LeaseHeld                SL010  OS_WORK_ORDER_LEASE_HELD                   retryable
    ├── LeaseLost                SL011  OS_WORK_ORDER_LEASE_LOST
    ├── AttemptConflict          SL012  OS_WORK_ORDER_ATTEMPT_CONFLICT
    ├── BoundExceeded            SL013  OS_WORK_ORDER_BOUND_EXCEEDED
    ├── CorrelationConflict      SL014  OS_WORK_ORDER_CORRELATION_CONFLICT
    ├── WorkOrderIdUnavailable   SL015  OS_WORK_ORDER_ID_UNAVAILABLE
    ├── WorkOrderNotFound        SL016  OS_WORK_ORDER_NOT_FOUND
    ├── ProjectionDamaged        SL017  OS_WORK_ORDER_PROJECTION_DAMAGED
    ├── IdentityNotFound         SL020  OS_IDENTITY_NOT_FOUND
    ├── DeviceNotFound           SL021  OS_DEVICE_NOT_FOUND
    ├── SessionNotFound          SL022  OS_SESSION_NOT_FOUND
    ├── SessionStateInvalid      SL023  OS_SESSION_STATE_INVALID
    ├── DeviceIdUnavailable      SL024  OS_DEVICE_ID_UNAVAILABLE
    ├── ConversationTurnNotFound SL025  OS_CONVERSATION_TURN_NOT_FOUND
    └── TombstoneConflict        SL026  OS_CONVERSATION_TOMBSTONE_CONFLICT

The database raises them with a sentence as MESSAGE and their attributes as one JSON object in DETAIL.

Every error of the package is a SeleneCoreError: SeleneError, SchemaError and its subclasses (check_schema),
MigrationLocked and MigrationRefused (selene_core.migrations), LocalServerUnavailable (selene_core.local).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from types import NoneType
from typing import Any, ClassVar, Final, Self, get_args, get_type_hints
from uuid import UUID

IDEMPOTENCY_REPLAY_CODE: Final = "OS_WORK_ORDER_IDEMPOTENCY_REPLAY"
"""The code of a replayed append, which is not an error."""


class SeleneCoreError(Exception):
    """The base class of all errors of selene_core."""


@dataclass(eq=False)
class SeleneError(SeleneCoreError):
    """The operation was refused."""

    code: ClassVar[str]
    sqlstate: ClassVar[str]
    retryable: ClassVar[bool] = False

    message: str = ""

    def __post_init__(self) -> None:
        """Fill in the default message, and let Exception know it (for str, pickle and copy)."""
        self.message = self.message or self._default_message()
        super().__init__(self.message)

    def __str__(self) -> str:
        """Return the message."""
        return self.message

    def _default_message(self) -> str:
        return (type(self).__doc__ or self.code).partition("\n")[0]


@dataclass(eq=False, kw_only=True)
class ContractViolation(SeleneError):
    """The input breaks the event contract."""

    code = "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"
    sqlstate = "SL001"

    field: str | None = None
    rule: str | None = None
    event_index: int | None = None

    def _default_message(self) -> str:
        return f"{self.field}: {self.rule}" if self.field and self.rule else super()._default_message()


@dataclass(eq=False, kw_only=True)
class TenantScopeViolation(SeleneError):
    """The transaction has no tenant, or another one."""

    code = "OS_WORK_ORDER_TENANT_SCOPE_VIOLATION"
    sqlstate = "SL002"


@dataclass(eq=False, kw_only=True)
class AppendOnlyViolation(SeleneError):
    """A ledger is append-only."""

    code = "OS_WORK_ORDER_APPEND_ONLY_VIOLATION"
    sqlstate = "SL003"

    table: str | None = None
    operation: str | None = None


@dataclass(eq=False, kw_only=True)
class CancelInvalidState(SeleneError):
    """The work order cannot be canceled this way."""

    code = "OS_WORK_ORDER_CANCEL_INVALID_STATE"
    sqlstate = "SL004"

    work_order_id: str | None = None
    work_order_status: str | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class IdempotencyConflict(SeleneError):
    """The idempotency key was used for other content."""

    code = "OS_WORK_ORDER_IDEMPOTENCY_CONFLICT"
    sqlstate = "SL005"

    work_order_id: str | None = None
    idempotency_key: str | None = None
    work_order_event_id: int | None = None
    event_index: int | None = None
    session_id: str | None = None
    correlation_id: UUID | None = None
    turn_id: int | None = None
    conversation_turn_id: int | None = None


@dataclass(eq=False, kw_only=True)
class ConcurrencyConflict(SeleneError):
    """The work order has moved on from expected_seq."""

    code = "OS_WORK_ORDER_CONCURRENCY_CONFLICT"
    sqlstate = "SL006"
    retryable = True

    work_order_id: str | None = None
    expected_seq: int | None = None
    last_seq: int | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class InvalidTransition(SeleneError):
    """The event does not follow from the work order's state."""

    code = "OS_WORK_ORDER_INVALID_TRANSITION"
    sqlstate = "SL007"

    work_order_id: str | None = None
    work_order_status: str | None = None
    event_type: str | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class PromptSuppressed(SeleneError):
    """The user was asked or told this before."""

    code = "OS_WORK_ORDER_PROMPT_SUPPRESSED"
    sqlstate = "SL008"

    work_order_id: str | None = None
    field_key: str | None = None
    request_id: str | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class ExternalApprovalPending(SeleneError):
    """The work order waits for an external approval."""

    code = "OS_WORK_ORDER_EXTERNAL_APPROVAL_PENDING"
    sqlstate = "SL009"

    work_order_id: str | None = None
    request_id: str | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class LeaseHeld(SeleneError):
    """Somebody holds an unexpired lease on the work order, or on the feed's consumer."""

    code = "OS_WORK_ORDER_LEASE_HELD"
    sqlstate = "SL010"
    retryable = True

    work_order_id: str | None = None
    lease_owner_id: str | None = None
    lease_expires_at: datetime | None = None
    event_index: int | None = None
    consumer: str | None = None


@dataclass(eq=False, kw_only=True)
class LeaseLost(SeleneError):
    """The token holds no unexpired lease on the work order, or the lease on the feed's consumer is lost."""

    code = "OS_WORK_ORDER_LEASE_LOST"
    sqlstate = "SL011"

    work_order_id: str | None = None
    event_index: int | None = None
    consumer: str | None = None


@dataclass(eq=False, kw_only=True)
class AttemptConflict(SeleneError):
    """The step cannot be attempted now."""

    code = "OS_WORK_ORDER_ATTEMPT_CONFLICT"
    sqlstate = "SL012"

    work_order_id: str | None = None
    step_id: str | None = None
    step_attempt_id: int | None = None
    attempt_index: int | None = None
    reason: str | None = None
    next_retry_at: datetime | None = None


@dataclass(eq=False, kw_only=True)
class BoundExceeded(SeleneError):
    """The work order would hold more than its bound."""

    code = "OS_WORK_ORDER_BOUND_EXCEEDED"
    sqlstate = "SL013"

    work_order_id: str | None = None
    bound: str | None = None
    limit: int | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class CorrelationConflict(SeleneError):
    """Another work order holds the correlation_id."""

    code = "OS_WORK_ORDER_CORRELATION_CONFLICT"
    sqlstate = "SL014"

    work_order_id: str | None = None
    correlation_id: UUID | None = None


@dataclass(eq=False, kw_only=True)
class WorkOrderIdUnavailable(SeleneError):
    """The work_order_id cannot be used."""

    code = "OS_WORK_ORDER_ID_UNAVAILABLE"
    sqlstate = "SL015"

    work_order_id: str | None = None


@dataclass(eq=False, kw_only=True)
class WorkOrderNotFound(SeleneError):
    """There is no such work order."""

    code = "OS_WORK_ORDER_NOT_FOUND"
    sqlstate = "SL016"

    work_order_id: str | None = None
    event_index: int | None = None


@dataclass(eq=False, kw_only=True)
class ProjectionDamaged(SeleneError):
    """The projection row is missing, or behind or ahead of its ledger: rebuild it first."""

    code = "OS_WORK_ORDER_PROJECTION_DAMAGED"
    sqlstate = "SL017"

    work_order_id: str | None = None


@dataclass(eq=False, kw_only=True)
class IdentityNotFound(SeleneError):
    """There is no such user."""

    code = "OS_IDENTITY_NOT_FOUND"
    sqlstate = "SL020"

    user_id: str | None = None


@dataclass(eq=False, kw_only=True)
class DeviceNotFound(SeleneError):
    """The user has no such device."""

    code = "OS_DEVICE_NOT_FOUND"
    sqlstate = "SL021"

    user_id: str | None = None
    device_id: str | None = None


@dataclass(eq=False, kw_only=True)
class SessionNotFound(SeleneError):
    """There is no such session, or it is another user's."""

    code = "OS_SESSION_NOT_FOUND"
    sqlstate = "SL022"

    user_id: str | None = None
    session_id: str | None = None


@dataclass(eq=False, kw_only=True)
class SessionStateInvalid(SeleneError):
    """The session cannot move to that state."""

    code = "OS_SESSION_STATE_INVALID"
    sqlstate = "SL023"

    session_id: str | None = None
    session_state: str | None = None
    requested_state: str | None = None


@dataclass(eq=False, kw_only=True)
class DeviceIdUnavailable(SeleneError):
    """The device_id is that of another user's device."""

    code = "OS_DEVICE_ID_UNAVAILABLE"
    sqlstate = "SL024"

    user_id: str | None = None
    device_id: str | None = None


@dataclass(eq=False, kw_only=True)
class ConversationTurnNotFound(SeleneError):
    """The conversation has no such turn."""

    code = "OS_CONVERSATION_TURN_NOT_FOUND"
    sqlstate = "SL025"

    correlation_id: UUID | None = None
    conversation_turn_id: int | None = None


@dataclass(eq=False, kw_only=True)
class TombstoneConflict(SeleneError):
    """The turn is hidden by another tombstone, or is one."""

    code = "OS_CONVERSATION_TOMBSTONE_CONFLICT"
    sqlstate = "SL026"

    correlation_id: UUID | None = None
    conversation_turn_id: int | None = None


class SchemaError(SeleneCoreError):
    """The database does not have the schema that this version of the library needs.

    Not a SeleneError: the database refused nothing. `revision` is the database's revision, `expected` the one
    that this version needs, `problems` has a sentence for each difference.
    """

    code: ClassVar[str] = "OS_SCHEMA_MISMATCH"

    def __init__(
        self, message: str, revision: str | None, expected: str, problems: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.revision = revision
        self.expected = expected
        self.problems = problems

    def __reduce__(self) -> tuple[type[Self], tuple[str, str | None, str, tuple[str, ...]]]:
        """Survive pickle: Exception keeps its first argument only."""
        return type(self), (self.message, self.revision, self.expected, self.problems)


class SchemaOutdated(SchemaError):
    """The database is older than this version of the library: `selene-core upgrade`."""

    code = "OS_SCHEMA_OUTDATED"


class SchemaTooNew(SchemaError):
    """The database is newer, and no longer has all that this version of the library needs."""

    code = "OS_SCHEMA_TOO_NEW"


class SchemaDrifted(SchemaError):
    """The database stands at the right revision, but somebody has changed it: `selene-core doctor`."""

    code = "OS_SCHEMA_DRIFTED"


class SchemaLocked(SchemaError):
    """A table is locked, as by a migration that is under way: ask again."""

    code = "OS_SCHEMA_LOCKED"


BY_SQLSTATE: Final[Mapping[str, type[SeleneError]]] = {
    error.sqlstate: error for error in SeleneError.__subclasses__()
}


def from_sqlstate(sqlstate: str | None, message: str | None, detail_json: str | None) -> SeleneError | None:
    """Make the error of an SQLSTATE; None for one that is not ours."""
    error = BY_SQLSTATE.get(sqlstate or "")
    return error(message or "", **_facts(error, detail_json)) if error else None


def _facts(error: type[SeleneError], detail_json: str | None) -> dict[str, Any]:
    """Read the attributes that the error declares; unknown ones and those of another type are left out."""
    try:
        detail = json.loads(detail_json or "")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(detail, dict):
        return {}
    declared = get_type_hints(error)
    return {
        fact.name: _converted(detail[fact.name], declared[fact.name])
        for fact in fields(error)
        if fact.kw_only and fact.name in detail
    }


def _converted(value: object, declared: Any) -> object:
    (kind,) = (kind for kind in get_args(declared) if kind is not NoneType)
    try:
        match value:
            case str() if kind is datetime:
                moment = datetime.fromisoformat(value)
                return moment if moment.tzinfo else None
            case str() if kind is UUID:
                return UUID(value)
            case _:
                return value if type(value) is kind else None
    except ValueError:
        return None


# --- of check_schema
