"""The removal of a tenant, for an operator who may act as selene_owner (contract §18)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import BigInteger, Boolean, Engine, Integer, Text, bindparam, func, select

from selene_core.contract.events import check_tenant_id
from selene_core.store.binds import checked
from selene_core.store.repository import TENANT, call, fetch
from selene_core.store.scope import tenant_scope

if TYPE_CHECKING:
    from sqlalchemy import Connection

REMOVED_AT_ONCE: Final = 2000


@dataclass(frozen=True, slots=True)
class RemovalReport:
    """What a removal has deleted, by table; `resumed` if an earlier one had been interrupted."""

    tenant_id: str
    resumed: bool
    removed: dict[str, int]

    @property
    def rows(self) -> int:
        """The sum over all tables."""
        return sum(self.removed.values())


def count_tenant(engine: Engine, tenant_id: str) -> dict[str, int]:
    """Count the rows that remove_tenant() would delete, by table."""
    with _as_owner(engine, check_tenant_id(tenant_id)) as conn:
        rows = fetch(conn, _COUNT, tenant_id=tenant_id)
        return {row["table_name"]: row["row_count"] for row in rows if row["row_count"]}


def remove_tenant(
    engine: Engine, tenant_id: str, progress: Callable[[RemovalReport], object] | None = None
) -> RemovalReport:
    """Delete every row of a tenant, in short transactions, until none is left (contract §18).

    A record is committed first: it opens DELETE for this tenant's rows. When nothing is found any more, a
    second one closes it. If it is interrupted, run it again. Stop the tenant's services first: what they
    write meanwhile is deleted, and what they write later stays. The engine's login must be able to act as
    selene_owner. Raises ContractViolation for an invalid tenant id.
    """
    owned: Engine = checked("remove_tenant", "an Engine", engine, Engine)
    tenant_id = check_tenant_id(tenant_id)
    with _as_owner(owned, tenant_id) as conn:
        report = RemovalReport(tenant_id, not fetch(conn, _OPEN, tenant_id=tenant_id)[0]["done"], {})
    while True:
        # A round over all tables, children first.
        with _as_owner(owned, tenant_id) as conn:
            found = fetch(conn, _REMOVE, tenant_id=tenant_id, limit=REMOVED_AT_ONCE)
        for row in found:
            report.removed[row["table_name"]] = report.removed.get(row["table_name"], 0) + row["removed"]
        if progress is not None:
            progress(report)
        if not found:
            with _as_owner(owned, tenant_id) as conn:
                if fetch(conn, _CLOSE, tenant_id=tenant_id)[0]["done"]:
                    return report


@contextmanager
def _as_owner(engine: Engine, tenant_id: str) -> Iterator[Connection]:
    # An older snapshot would not show what others commit meanwhile.
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as conn, conn.begin():
        conn.exec_driver_sql("SET LOCAL ROLE selene_owner")
        with tenant_scope(conn, tenant_id):
            yield conn


_OPEN: Final = select(func.os_core.open_tenant_removal(TENANT, type_=Boolean).label("done"))
_CLOSE: Final = select(func.os_core.close_tenant_removal(TENANT, type_=Boolean).label("done"))
_COUNT: Final = call("count_tenant_rows", [TENANT], table_name=Text, row_count=BigInteger)
_REMOVE: Final = call(
    "remove_tenant_rows",
    [TENANT, bindparam("limit", type_=Integer)],
    table_name=Text,
    removed=BigInteger,
    is_held=Boolean,
)
