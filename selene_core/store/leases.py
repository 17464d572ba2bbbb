"""Leases: who may work on a work order, until when, and with which fence (contract §8 and §14)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Boolean, Text, and_, bindparam, func
from sqlalchemy.dialects.postgresql import ARRAY

from selene_core.contract.enums import TERMINAL_STATUSES, LeaseState, WorkOrderStatus
from selene_core.contract.events import check_work_order_id
from selene_core.contract.rows import Claim, HeldLease, Lease, check_statuses
from selene_core.contract.rules import EVENT_RULES, MAX_ID, MAX_LEASE_TTL_MS, identifier, integer
from selene_core.store.instants import Instant
from selene_core.store.repository import TENANT, Repository, Secret, call, in_scope, scoped
from selene_core.store.tables import work_order_leases
from selene_core.store.work_order_statements import WORK_ORDER_COLUMNS, work_order

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

_OWNER: Final = identifier(MAX_ID)
_TTL_MS: Final = integer(1, MAX_LEASE_TTL_MS)
_TOKEN: Final = EVENT_RULES["lease_token"]
_KEY: Final = EVENT_RULES["idempotency_key"]


class LeaseRepository(Repository):
    """Take, renew and give back leases, for the tenant of the connection's tenant_scope.

    The database's clock decides whether a lease is held, never the caller's. Each change writes a LEASE_*
    event, which repeats the work order's correlation_id, turn_id, status, last reason_code and step. Every
    method raises TenantScopeViolation outside the scope.
    """

    def acquire(
        self,
        work_order_id: str,
        owner: str,
        *,
        ttl_ms: int,
        token: str | None = None,
        idempotency_key: str | None = None,
    ) -> HeldLease:
        """Take the lease for `ttl_ms` milliseconds (1..3,600,000). An expired one is taken over.

        To be able to repeat the call after a lost reply, make the token yourself with
        secrets.token_urlsafe(32) and send the same again: you get the same lease, not extended. A token
        stands for one lease. Once that has expired or was given back, the token raises LeaseLost: make a new
        one.

        Raises LeaseHeld (by whom, until when), LeaseLost, IdempotencyConflict, WorkOrderNotFound and
        ContractViolation; InvalidTransition if the work order has ended (contract §8).
        """
        token = secrets.token_urlsafe(32) if token is None else _TOKEN.check("token", token)
        rows = self._run(
            _ACQUIRE,
            work_order_id=check_work_order_id(work_order_id),
            owner=_OWNER.check("owner", owner),
            token=Secret(token),
            ttl_ms=_TTL_MS.check("ttl_ms", ttl_ms),
            idempotency_key=_KEY.check_optional("idempotency_key", idempotency_key),
        )
        return HeldLease(**_facts(rows[0]), token=token)

    def claim(
        self,
        owner: str,
        ttl_ms: int,
        statuses: Iterable[WorkOrderStatus | str] = (WorkOrderStatus.EXECUTING,),
        token: str | None = None,
    ) -> Claim | None:
        """Take the lease on the next work order to work on, for `ttl_ms` milliseconds (1..3,600,000).

        None if there is none: one in these statuses, without an unexpired lease, that waits for no approval,
        no running attempt, no retry that is not due, no not_before of release(), and no step that somebody
        has to decide on. First comes the order whose lease ended longest ago, or that was created before
        that. Two workers never wait for each other, nor get the same order.

        To be able to repeat the call after a lost reply, make the token yourself with
        secrets.token_urlsafe(32) and send the same again: as long as the lease is held, you get that claim.

        Raises LeaseLost if the token's lease has ended, IdempotencyConflict if it is another owner's, and
        ContractViolation (contract §9).
        """
        token = secrets.token_urlsafe(32) if token is None else _TOKEN.check("token", token)
        rows = self._run(
            _CLAIM,
            owner=_OWNER.check("owner", owner),
            token=Secret(token),
            ttl_ms=_TTL_MS.check("ttl_ms", ttl_ms),
            statuses=check_statuses(statuses, without=TERMINAL_STATUSES),
        )
        if not rows:
            return None
        return Claim(HeldLease(**_facts(rows[0]), token=token), work_order(rows[0]))

    def renew(self, work_order_id: str, token: str, *, ttl_ms: int) -> HeldLease:
        """Extend an unexpired lease to `ttl_ms` milliseconds (1..3,600,000) from now.

        Raises LeaseLost if the token is not that of an unexpired lease, InvalidTransition if the work order
        has ended, WorkOrderNotFound and ContractViolation (contract §8).
        """
        token = _TOKEN.check("token", token)
        rows = self._run(
            _RENEW,
            work_order_id=check_work_order_id(work_order_id),
            token=Secret(token),
            ttl_ms=_TTL_MS.check("ttl_ms", ttl_ms),
        )
        return HeldLease(**_facts(rows[0]), token=token)

    def release(self, work_order_id: str, token: str, *, not_before: datetime | None = None) -> None:
        """Give the lease back, even an expired one. Does nothing if it was given back before.

        `not_before`: claim() leaves the work order alone until then, by the database's clock.

        Raises LeaseLost if it was taken over or the token is unknown, WorkOrderNotFound and ContractViolation
        (contract §8).
        """
        self._run(
            _RELEASE,
            work_order_id=check_work_order_id(work_order_id),
            token=Secret(_TOKEN.check("token", token)),
            not_before=EVENT_RULES["occurred_at"].check_optional("not_before", not_before),
        )

    def current(self, work_order_id: str) -> Lease | None:
        """Return the lease that is held now; None if there is none, or it has expired (contract §14)."""
        rows = self._read(_CURRENT, work_order_id=check_work_order_id(work_order_id))
        return Lease(**_facts(rows[0]), token=None) if rows else None


def _facts(row: RowMapping) -> dict[str, Any]:
    found = {name: row[name] for name in _NAMES}
    return {**found, "lease_state": LeaseState(row["lease_state"])}


# --- statements, built once; all values are parameters

_NAMES: Final = tuple(name for name in Lease.__dataclass_fields__ if name != "token")
_LEASES: Final = work_order_leases.columns
_WORK_ORDER: Final = bindparam("work_order_id", type_=Text)
_TOKEN_GIVEN: Final = bindparam("token", type_=Text)
_TTL_GIVEN: Final = bindparam("ttl_ms", type_=BigInteger)
_ROW: Final[dict[str, Any]] = {column.name: column.type for column in _LEASES}

_ACQUIRE: Final = call(
    "acquire_lease",
    scoped(
        _WORK_ORDER,
        bindparam("owner", type_=Text),
        _TOKEN_GIVEN,
        _TTL_GIVEN,
        bindparam("idempotency_key", type_=Text),
    ),
    **_ROW,
)
_RENEW: Final = call("renew_lease", scoped(_WORK_ORDER, _TOKEN_GIVEN, _TTL_GIVEN), **_ROW)
_RELEASE: Final = call(
    "release_lease",
    scoped(_WORK_ORDER, _TOKEN_GIVEN, bindparam("not_before", type_=Instant())),
    result=Boolean,
)
_CLAIM: Final = call(
    "claim_work_order",
    scoped(
        bindparam("owner", type_=Text),
        _TOKEN_GIVEN,
        _TTL_GIVEN,
        bindparam("statuses", type_=ARRAY(Text)),
    ),
    **{**_ROW, **WORK_ORDER_COLUMNS},
)
_CURRENT: Final = in_scope(
    work_order_leases,
    and_(
        _LEASES.tenant_id == TENANT,
        _LEASES.work_order_id == _WORK_ORDER,
        _LEASES.lease_state == LeaseState.ACTIVE.value,
        _LEASES.lease_expires_at > func.clock_timestamp(),
    ),
)
