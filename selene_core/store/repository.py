"""The base of every repository: one statement a call, inside the tenant_scope of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sqlalchemy import (
    Connection,
    Integer,
    Text,
    bindparam,
    case,
    column,
    func,
    literal_column,
    or_,
    select,
    values,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from selene_core.contract.errors import LeaseLost
from selene_core.store.binds import checked
from selene_core.store.driver import rows
from selene_core.store.logs import log_lost_lease
from selene_core.store.scope import confirm_scope, scope_tenant, translate_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement, Dialect, FromClause, RowMapping, Select

T = TypeVar("T")

_DIALECT: Final[Dialect] = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here

TENANT: Final = bindparam("tenant_id", type_=Text)
_TENANT_SET: Final = literal_column("current_setting('selene.tenant_id', TRUE)", Text)


class Secret(str):
    """A secret parameter: logs of statements and errors that list parameters show '…' instead."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the value."""
        return "'…'"


class DriverStatement(Generic[T]):
    """A statement written out once, as the driver takes it, and how a row of it is read, by position.

    The statements that services send most go this way: otherwise SQLAlchemy's work on the statement, and on
    the names of its columns, costs more than the answer.
    """

    __slots__ = ("read", "text")

    def __init__(self, statement: Select[Any], read: Callable[[Sequence[Any]], T]) -> None:
        self.text: Final = str(statement.compile(dialect=_DIALECT))
        self.read: Final = read


class Repository:
    """Work for the tenant of the connection's tenant_scope.

    Every method raises TenantScopeViolation outside the scope, and after its transaction has ended.
    """

    def __init__(self, conn: Connection) -> None:
        """Work on the connection that tenant_scope yields; raises TypeError for anything else."""
        wanted = "the Connection that tenant_scope yields"
        self._conn: Connection = checked(type(self).__name__, wanted, conn, Connection)

    def _run(self, statement: Select[Any], **parameters: object) -> Sequence[RowMapping]:
        """Return the rows of a statement that calls a function with scoped() arguments."""
        return fetch(self._conn, statement, tenant_id=scope_tenant(self._conn), **parameters)

    def _read(self, statement: Select[Any], **parameters: object) -> list[RowMapping]:
        """Return the rows of a statement that in_scope() made."""
        rows = self._run(statement, **parameters)
        confirm_scope(self._conn, rows[0]["scope_tenant_id"])
        return [row for row in rows if row["tenant_id"] is not None]

    def _read_in_scope(self, statement: DriverStatement[T], **parameters: object) -> list[T]:
        """Return the rows of a statement that in_scope() made, of one array each."""
        rows = send(self._conn, statement, tenant_id=scope_tenant(self._conn), **parameters)
        confirm_scope(self._conn, rows[0][0])
        return [statement.read(values) for _, values in rows if values[0] is not None]


def send(conn: Connection, statement: DriverStatement[Any], **parameters: object) -> Sequence[Sequence[Any]]:
    """Return all rows of a statement; raises a refusal of the database as a SeleneError."""
    with logged_refusals(parameters["tenant_id"]):
        return send_unlogged(conn, statement, **parameters)


def send_unlogged(
    conn: Connection, statement: DriverStatement[Any], **parameters: object
) -> Sequence[Sequence[Any]]:
    """Do what send() does, for whoever decides by himself whether a refusal is told."""
    with translate_errors():
        return rows(conn, statement.text, parameters)


def fetch(conn: Connection, statement: Select[Any], **parameters: object) -> Sequence[RowMapping]:
    """Return all rows of a statement; raises a refusal of the database as a SeleneError."""
    with logged_refusals(parameters["tenant_id"]), translate_errors():
        return conn.execute(statement, parameters).mappings().all()


class logged_refusals:  # noqa: N801 - used as a function; a class costs a third of @contextmanager
    """Log a lost lease, which the caller is about to be told of."""

    __slots__ = ("_tenant_id",)

    def __init__(self, tenant_id: object) -> None:
        self._tenant_id = tenant_id

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> None:
        if isinstance(exc, LeaseLost):
            log_lost_lease(
                str(self._tenant_id), exc.work_order_id, "a call was refused", consumer=exc.consumer
            )


def call(function: str, arguments: Sequence[ColumnElement[Any]], **returned: Any) -> Select[Any]:
    """Select from a function that returns these columns; it is in os_core unless its name has a schema."""
    schema, _, name = function.rpartition(".")
    columns = [column(name, type_) for name, type_ in returned.items()]
    called = getattr(getattr(func, schema or "os_core"), name)(*arguments)
    return select(called.table_valued(*columns, name="result"))


def scoped(first: ColumnElement[Any], *others: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    """Return the arguments of a function that enters the tenant; it raises TenantScopeViolation in another.

    The tenant is a value, by which a distributed engine finds the node for the call. So the transaction is
    judged with the argument after it, which the database evaluates before it calls the function. The setting
    is compared here, because require_tenant costs ten times as much; it raises what is to be raised.
    """
    is_right = or_(_TENANT_SET == TENANT, func.os_core.require_tenant(TENANT).is_not(None))
    return [TENANT, case((is_right, first)), *others]


def in_scope(rows: FromClause, on: ColumnElement[bool], *columns: ColumnElement[Any]) -> Select[Any]:
    """Select rows together with the transaction's tenant; without rows, one row of NULLs with the tenant.

    `columns` of the rows; without any, all.
    """
    one = values(column("n", Integer), name="one", literal_binds=True).data([(1,)])
    tenant = _TENANT_SET.label("scope_tenant_id")
    return select(tenant, *(columns or rows.c)).select_from(one.outerjoin(rows, on))
