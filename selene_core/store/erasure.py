"""The erasure of a person: erase_subject, and what is held about one (contract §18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Boolean, Engine, Text, bindparam

from selene_core.contract.events import check_tenant_id
from selene_core.contract.personal import SUBJECT
from selene_core.contract.rows import Erasure
from selene_core.contract.rules import EVENT_RULES
from selene_core.store.binds import Bind, bound, joined
from selene_core.store.instants import Instant
from selene_core.store.repository import call, fetch, scoped
from selene_core.store.scope import tenant_scope

if TYPE_CHECKING:
    from sqlalchemy import Connection


def erase_subject(bind: Bind, tenant_id: str, subject_id: str, *, reason_code: int) -> Erasure:
    """Erase what is kept about a person: personal values, and the texts of the person's turns (contract §18).

    It waits for calls that are writing one of them. References, events and turns stay, and read as erased.
    Again, and with nothing left to erase, it returns the last erasure as replayed.

    On an engine: in a transaction of its own. On a connection or an ORM session: in its transaction, which
    must be READ COMMITTED; the person is locked until it ends. Raises ContractViolation, and what
    tenant_scope raises.
    """
    bind = bound("erase_subject", bind)
    checked = checked_erasure(tenant_id, subject_id, reason_code)
    if isinstance(bind, Engine):
        with bind.connect() as conn:
            return erase_alone(conn, **checked)
    return erase_joined(joined(bind), **checked)


def checked_erasure(tenant_id: str, subject_id: str, reason_code: int) -> dict[str, Any]:
    """Return the arguments of an erasure, by name; raises ContractViolation."""
    return {
        "tenant_id": check_tenant_id(tenant_id),
        "subject_id": SUBJECT.check("subject_id", subject_id),
        "reason_code": EVENT_RULES["reason_code"].check("reason_code", reason_code),
    }


def erase_alone(conn: Connection, **checked: Any) -> Erasure:
    """Erase on a connection that has no transaction yet."""
    # An older snapshot would not show what is committed while the erasure waits.
    return erase_joined(conn.execution_options(isolation_level="READ COMMITTED"), **checked)


def erase_joined(conn: Connection, **checked: Any) -> Erasure:
    """Erase in the connection's transaction; it begins and ends one if there is none."""
    with tenant_scope(conn, checked["tenant_id"]):
        return Erasure(subject_id=checked["subject_id"], **fetch(conn, _ERASE, **checked)[0])


_ERASE: Final = call(
    "erase_subject",
    scoped(bindparam("subject_id", type_=Text), bindparam("reason_code", type_=BigInteger)),
    erasure_id=BigInteger,
    erased_at=Instant(),
    values_erased=BigInteger,
    texts_erased=BigInteger,
    replayed=Boolean,
)
