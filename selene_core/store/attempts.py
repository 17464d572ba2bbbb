"""Attempts at a step: numbered, with a timeout, and retried by the database's clock (contract §8 and §14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Boolean, Integer, Text, and_, bindparam, or_

from selene_core.contract.enums import AttemptOutcome, AttemptStatus, RetryAction
from selene_core.contract.events import check_work_order_id
from selene_core.contract.frozen_json import MAX_INT64
from selene_core.contract.rows import RetryDecision, StepAttempt
from selene_core.contract.rules import EVENT_RULES, MAX_MAX_RETRIES, MAX_STEP_MS, choice, flag, integer
from selene_core.store.instants import Instant
from selene_core.store.repository import TENANT, Repository, Secret, call, in_scope, scoped
from selene_core.store.tables import work_order_step_attempts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import RowMapping

MAX_DUE_RETRIES: Final = 1000

_MILLISECONDS: Final = integer(1, MAX_STEP_MS)
_MAX_RETRIES: Final = integer(0, MAX_MAX_RETRIES)
_STEP_ATTEMPT_ID: Final = integer(1, MAX_INT64)
_OUTCOME: Final = choice(AttemptOutcome)
_RETRYABLE: Final = flag()
_LIMIT: Final = integer(1, MAX_DUE_RETRIES)


class StepAttemptRepository(Repository):
    """Start and finish attempts at steps, for the tenant of the connection's tenant_scope.

    All times are the database's. The STEP_* events repeat the work order's correlation_id, turn_id and
    status. Every method raises TenantScopeViolation outside the scope.
    """

    def start(
        self,
        work_order_id: str,
        step_id: str,
        *,
        timeout_ms: int,
        max_retries: int,
        retry_backoff_ms: int,
        idempotency_key: str,
        lease_token: str | None = None,
    ) -> StepAttempt:
        """Start the next attempt at a step. The same key and limits again return the attempt as it is now.

        `timeout_ms` and `retry_backoff_ms` are 1..31,536,000,000 (365 days), `max_retries` is 0..1024. A
        running attempt past its timeout is closed first: it failed at its deadline. After a failure that is
        not retryable, a start means "once more" (contract §8). STEP_STARTED repeats the work order's last
        reason_code.

        Raises AttemptConflict, whose `reason` is RUNNING, NOT_DUE (see `next_retry_at`), BUDGET_SPENT or
        SUCCEEDED; LeaseHeld, LeaseLost, ExternalApprovalPending, IdempotencyConflict, WorkOrderNotFound and
        ContractViolation; InvalidTransition if the work order has ended.
        """
        rows = self._run(
            _START,
            work_order_id=check_work_order_id(work_order_id),
            step_id=EVENT_RULES["step_id"].check("step_id", step_id),
            timeout_ms=_MILLISECONDS.check("timeout_ms", timeout_ms),
            max_retries=_MAX_RETRIES.check("max_retries", max_retries),
            retry_backoff_ms=_MILLISECONDS.check("retry_backoff_ms", retry_backoff_ms),
            idempotency_key=EVENT_RULES["idempotency_key"].check("idempotency_key", idempotency_key),
            lease_token=_token(lease_token),
        )
        return _attempt(rows[0])

    def finish(
        self,
        step_attempt_id: int,
        *,
        outcome: AttemptOutcome | str,
        reason_code: int,
        retryable: bool = False,
        lease_token: str | None = None,
        idempotency_key: str | None = None,
    ) -> RetryDecision:
        """Finish an attempt and return what follows. The same call with the same key gets the same answer.

        DONE: it succeeded. RETRY_AT: the next attempt may start at the finish time plus retry_backoff_ms.
        WAIT: the failure is not retryable, so a person or another engine decides. FAIL: no retries are left.
        Past its timeout an attempt counts as failed and retryable, whatever the outcome. If the work order
        has ended, the attempt becomes CANCELED and the action is FAIL.

        Raises AttemptConflict, whose `reason` is OVER or UNKNOWN; LeaseHeld, LeaseLost, IdempotencyConflict
        and ContractViolation (contract §8).
        """
        rows = self._run(
            _FINISH,
            step_attempt_id=_STEP_ATTEMPT_ID.check("step_attempt_id", step_attempt_id),
            outcome=_OUTCOME.check("outcome", outcome).value,
            reason_code=EVENT_RULES["reason_code"].check("reason_code", reason_code),
            retryable=_RETRYABLE.check("retryable", retryable),
            lease_token=_token(lease_token),
            idempotency_key=EVENT_RULES["idempotency_key"].check_optional("idempotency_key", idempotency_key),
        )
        return RetryDecision(**{**rows[0], "action": RetryAction(rows[0]["action"])})

    def history(self, work_order_id: str, step_id: str | None = None) -> list[StepAttempt]:
        """Return the attempts of a work order, or of one of its steps, in the order of their starts."""
        rows = self._read(
            _HISTORY,
            work_order_id=check_work_order_id(work_order_id),
            step_id=EVENT_RULES["step_id"].check_optional("step_id", step_id),
        )
        return _attempts(rows)

    def due_retries(self, limit: int = 100) -> list[StepAttempt]:
        """Return up to `limit` (1..1000) attempts whose retry may start now, oldest first (contract §8).

        Each has failed and its retry is due, or it is running past its timeout with a retry left. This
        reserves nothing: if several workers start the same retry, one wins and the others get
        AttemptConflict.
        """
        return _attempts(self._run(_DUE, limit=_LIMIT.check("limit", limit)))


def _token(lease_token: str | None) -> str | None:
    return (
        None if lease_token is None else Secret(EVENT_RULES["lease_token"].check("lease_token", lease_token))
    )


def _attempts(rows: Iterable[RowMapping]) -> list[StepAttempt]:
    return [_attempt(row) for row in rows]


def _attempt(row: RowMapping) -> StepAttempt:
    found = {name: row[name] for name in _ROW}
    return StepAttempt(**{**found, "attempt_status": AttemptStatus(row["attempt_status"])})


# --- statements, built once; all values are parameters

_ATTEMPTS: Final = work_order_step_attempts.columns
_ROW: Final[dict[str, Any]] = {column.name: column.type for column in _ATTEMPTS}
_WORK_ORDER: Final = bindparam("work_order_id", type_=Text)
_STEP: Final = bindparam("step_id", type_=Text)
_KEY: Final = bindparam("idempotency_key", type_=Text)
_LEASE_TOKEN: Final = bindparam("lease_token", type_=Text)

_START: Final = call(
    "start_step_attempt",
    scoped(
        _WORK_ORDER,
        _STEP,
        bindparam("timeout_ms", type_=BigInteger),
        bindparam("max_retries", type_=BigInteger),
        bindparam("retry_backoff_ms", type_=BigInteger),
        _KEY,
        _LEASE_TOKEN,
    ),
    **_ROW,
)
_FINISH: Final = call(
    "finish_step_attempt",
    scoped(
        bindparam("step_attempt_id", type_=BigInteger),
        bindparam("outcome", type_=Text),
        bindparam("reason_code", type_=BigInteger),
        bindparam("retryable", type_=Boolean),
        _LEASE_TOKEN,
        _KEY,
    ),
    action=Text,
    next_due_at=Instant(),
    next_attempt_index=Integer,
)
_DUE: Final = call("due_step_retries", scoped(bindparam("limit", type_=Integer)), **_ROW)
_HISTORY: Final = in_scope(
    work_order_step_attempts,
    and_(
        _ATTEMPTS.tenant_id == TENANT,
        _ATTEMPTS.work_order_id == _WORK_ORDER,
        or_(_STEP.is_(None), _ATTEMPTS.step_id == _STEP),
    ),
).order_by(_ATTEMPTS.started_at, _ATTEMPTS.step_attempt_id)
