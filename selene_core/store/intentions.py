"""What a service wants done with a work order: a method for each intention (contract §14)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, TypedDict, Unpack
from uuid import UUID

from selene_core.contract.enums import (
    ApprovalOutcome,
    PromptAction,
    PromptReason,
    WorkOrderEventType,
    WorkOrderStatus,
)
from selene_core.contract.errors import ContractViolation
from selene_core.contract.events import (
    WorkOrderLedgerEventInput,
    check_work_order_id,
    new_work_order_id,
    rfc3339,
)
from selene_core.contract.prompts import PromptDecision, check_prefilled_fields, check_required_fields
from selene_core.contract.rows import AppendResult, Created
from selene_core.contract.rules import ENVELOPE_RULES, EVENT_RULES, PAYLOAD_RULES
from selene_core.store import work_order_statements as statements
from selene_core.store.repository import Repository
from selene_core.store.scope import scope_tenant


class EnvelopeOfStatus(TypedDict, total=False):
    """The envelope of change_status: what may be given besides; what is left out is the order's own."""

    correlation_id: UUID | None
    turn_id: int | None
    reason_code: int | None
    idempotency_key: str | None
    expected_seq: int | None
    lease_token: str | None
    occurred_at: datetime | None


class Envelope(EnvelopeOfStatus, total=False):
    """What may be given besides to an intention; what is left out is the order's own, or nothing.

    Leave out `work_order_status` unless the event is to change it: a status that was read before undoes what
    others have set since.
    """

    work_order_status: WorkOrderStatus | str | None


_KIND: Final = WorkOrderEventType
_NOTE: Final = PAYLOAD_RULES[_KIND.WORK_ORDER_CANCELED].optional["note"]


class Intentions(Repository, ABC):
    """Append the event of an intention; each method is one round trip.

    A method raises ContractViolation, naming its argument, and what append raises. With an idempotency_key it
    can be repeated: the original is returned, whatever has happened since; other arguments under the same key
    are IdempotencyConflict.
    """

    @abstractmethod
    def append(self, event: WorkOrderLedgerEventInput) -> AppendResult:
        """Append one event (contract §4)."""

    def create(
        self,
        work_order_id: str | None = None,
        *,
        correlation_id: UUID,
        turn_id: int,
        reason_code: int,
        fields: Mapping[str, Any] | None = None,
        requester_user_id: str | None = None,
        status: WorkOrderStatus | str = WorkOrderStatus.DRAFT,
        idempotency_key: str | None = None,
    ) -> Created:
        """Create a work order, and return its id and the event's numbers.

        Without an id it gets a new one. With a key and no id, the id is derived from tenant, correlation_id
        and key: sent twice, it is one order. Raises InvalidTransition if the order exists already,
        CorrelationConflict if another order has the correlation_id, BoundExceeded and WorkOrderIdUnavailable.
        """
        status = ENVELOPE_RULES[_KIND.WORK_ORDER_CREATED].status.check("status", status)
        thread: UUID = EVENT_RULES["correlation_id"].check("correlation_id", correlation_id)
        key = EVENT_RULES["idempotency_key"].check_optional("idempotency_key", idempotency_key)
        if work_order_id is None:
            work_order_id = new_work_order_id() if key is None else self._derived_id(thread, key)
        result = self._record(
            _KIND.WORK_ORDER_CREATED,
            work_order_id,
            _given(
                fields=dict(fields) if isinstance(fields, Mapping) else fields,
                requester_user_id=requester_user_id,
            ),
            {
                "correlation_id": thread,
                "turn_id": turn_id,
                "work_order_status": status,
                "reason_code": reason_code,
                "idempotency_key": key,
            },
        )
        return Created(
            work_order_id=work_order_id,
            work_order_event_id=result.work_order_event_id,
            work_order_seq=result.work_order_seq,
            replayed=result.replayed,
            created_at=result.created_at,
        )

    def set_field(
        self, work_order_id: str, field_key: str, value: Any, **envelope: Unpack[Envelope]
    ) -> AppendResult:
        """Set a field to a JSON value; None is a value. Raises InvalidTransition if the order has ended."""
        payload = {"field_key": field_key, "value": value}
        return self._record(_KIND.FIELD_SET, work_order_id, payload, envelope)

    def change_status(
        self,
        work_order_id: str,
        status: WorkOrderStatus | str,
        previous_status: WorkOrderStatus | str | None = None,
        note: str | None = None,
        **envelope: Unpack[EnvelopeOfStatus],
    ) -> AppendResult:
        """Move the order to another status; CANCELED needs a reason_code.

        Raises InvalidTransition if the order has ended, or its status is not the `previous_status` given;
        ExternalApprovalPending if it waits and the status is EXECUTING or DONE; CancelInvalidState.
        """
        if "work_order_status" in envelope:
            raise TypeError("unexpected keyword argument 'work_order_status': the status has its own place")
        status = EVENT_RULES["work_order_status"].check("status", status)
        payload = _given(previous_status=previous_status, note=note)
        return self._record(
            _KIND.STATUS_CHANGED, work_order_id, payload, {**envelope, "work_order_status": status}
        )

    def detect_conflict(
        self,
        work_order_id: str,
        field_key: str,
        candidates: list[Any] | None = None,
        **envelope: Unpack[Envelope],
    ) -> AppendResult:
        """Open a conflict about a field: the user may be asked for it once more, whatever is known."""
        payload = {"field_key": field_key, **_given(candidates=candidates)}
        return self._record(_KIND.FIELD_CONFLICT_DETECTED, work_order_id, payload, envelope)

    def resolve_conflict(
        self, work_order_id: str, field_key: str, value: Any, **envelope: Unpack[Envelope]
    ) -> AppendResult:
        """Settle a field's conflict with a JSON value: the field is not asked any more."""
        payload = {"field_key": field_key, "value": value}
        return self._record(_KIND.FIELD_CONFLICT_RESOLVED, work_order_id, payload, envelope)

    def request_approval(
        self,
        work_order_id: str,
        request_id: str,
        target_user_id: str,
        expires_at: datetime | None = None,
        **envelope: Unpack[Envelope],
    ) -> AppendResult:
        """Make the order wait for somebody's approval. Raises ExternalApprovalPending if it waits already."""
        expiry = EVENT_RULES["occurred_at"].check_optional("expires_at", expires_at)
        payload = {"request_id": request_id, "target_user_id": target_user_id}
        if expiry is not None:
            payload["expires_at"] = rfc3339(expiry)
        return self._record(_KIND.EXTERNAL_APPROVAL_REQUESTED, work_order_id, payload, envelope)

    def resolve_approval(
        self,
        work_order_id: str,
        request_id: str,
        outcome: ApprovalOutcome | str,
        **envelope: Unpack[Envelope],
    ) -> AppendResult:
        """Record the answer to a request: APPROVED, REJECTED, or EXPIRED once `expires_at` has passed.

        Raises InvalidTransition if this request is not pending, or has not expired.
        """
        payload = {"request_id": request_id, "outcome": outcome}
        return self._record(_KIND.EXTERNAL_APPROVAL_RESOLVED, work_order_id, payload, envelope)

    def cancel(
        self, work_order_id: str, reason_code: int, idempotency_key: str, note: str | None = None
    ) -> AppendResult:
        """Append WORK_ORDER_CANCELED with the order's thread and turn (contract §9).

        The same key again returns the original, replayed. Raises ContractViolation, WorkOrderNotFound,
        CancelInvalidState if the order has ended, IdempotencyConflict and ProjectionDamaged.
        """
        rows = self._run(
            statements.CANCEL,
            work_order_id=check_work_order_id(work_order_id),
            reason_code=EVENT_RULES["reason_code"].check("reason_code", reason_code),
            idempotency_key=EVENT_RULES["idempotency_key"].check("idempotency_key", idempotency_key),
            note=_NOTE.check_optional("note", note),
        )
        return AppendResult(**rows[0])

    def ask(
        self,
        work_order_id: str,
        required_fields: Iterable[str],
        prefilled_fields: Iterable[str] = (),
        turn_id: int | None = None,
        reason_code: int | None = None,
        idempotency_key: str | None = None,
    ) -> PromptDecision:
        """Lock the order, decide as decide_prompt() does, and record the prompt, if any (contract §6).

        If several processes ask at once, one may; the others get the next field or nothing. The prompt has
        the order's thread and status, and its turn_id and last_reason_code if none are given. The key of a
        recorded prompt returns that prompt, with prompt.replayed.

        Raises ContractViolation, WorkOrderNotFound, BoundExceeded and ProjectionDamaged; IdempotencyConflict
        if another event has the key; InvalidTransition if it would ask about an order that has ended.
        """
        row = self._run(
            statements.ASK,
            work_order_id=check_work_order_id(work_order_id),
            required_fields=list(check_required_fields(required_fields)),
            prefilled_fields=list(check_prefilled_fields(prefilled_fields)),
            turn_id=EVENT_RULES["turn_id"].check_optional("turn_id", turn_id),
            reason_code=EVENT_RULES["reason_code"].check_optional("reason_code", reason_code),
            idempotency_key=EVENT_RULES["idempotency_key"].check_optional("idempotency_key", idempotency_key),
        )[0]
        prompt = AppendResult(**{name: row[name] for name in statements.APPENDED})
        return PromptDecision(
            decision=PromptAction(row["decision"]),
            field_key=row["field_key"],
            prompt_dedupe_key=row["prompt_dedupe_key"],
            reason=PromptReason(row["reason"]),
            prompt=None if row["work_order_event_id"] is None else prompt,
        )

    def notify_wait(
        self, work_order_id: str, turn_id: int | None = None, reason_code: int | None = None
    ) -> bool:
        """Tell whether this caller must tell the user of the wait for an approval, and record that it does.

        True once for each request, and once more after its expiry. False if the user was told or nothing is
        pending. The event has the order's turn_id and last_reason_code if none are given. Raises
        ContractViolation, WorkOrderNotFound and ProjectionDamaged (contract §7).
        """
        rows = self._run(
            statements.NOTIFY_WAIT,
            work_order_id=check_work_order_id(work_order_id),
            turn_id=EVENT_RULES["turn_id"].check_optional("turn_id", turn_id),
            reason_code=EVENT_RULES["reason_code"].check_optional("reason_code", reason_code),
        )
        speaks: bool = rows[0]["speaks"]
        return speaks

    def _record(
        self,
        event_type: WorkOrderEventType,
        work_order_id: str,
        payload: Mapping[str, Any],
        envelope: Mapping[str, Any],
    ) -> AppendResult:
        for key in envelope:
            if key not in Envelope.__optional_keys__:
                raise TypeError(f"unexpected keyword argument {key!r}: it is not part of the envelope")
        given = {"work_order_id": work_order_id, "event_type": event_type, "payload": payload, **envelope}
        try:
            event = WorkOrderLedgerEventInput(**given)
        except ContractViolation as exc:
            # The keys of a payload are the method's arguments.
            field = (exc.field or "").removeprefix("payload.")
            raise ContractViolation(field=field, rule=exc.rule) from None
        return self.append(event)

    def _derived_id(self, correlation_id: UUID, idempotency_key: str) -> str:
        named = "\n".join((scope_tenant(self._conn), str(correlation_id), idempotency_key))
        return f"wo_{hashlib.sha256(named.encode()).hexdigest()[:32]}"


def _given(**optional: Any) -> dict[str, Any]:
    return {name: value for name, value in optional.items() if value is not None}
