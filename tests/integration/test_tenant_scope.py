"""tenant_scope: one transaction, one tenant, and no way to work without it by mistake."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InvalidRequestError, ProgrammingError

from selene_core import (
    ContractViolation,
    LeaseHeld,
    LeaseRepository,
    SeleneError,
    StepAttemptRepository,
    TenantScopeViolation,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from selene_core.store.scope import scope_tenant, translate_errors
from tests.support.factories import correlation_of, created, event
from tests.support.raw import connect
from tests.support.servers import Database

EVERY_CALL: list[Callable[[WorkOrderRepository], object]] = [
    lambda repository: repository.append(event("STEP_STARTED", "order")),
    lambda repository: repository.append_many([event("STEP_STARTED", "order")]),
    lambda repository: repository.get("order"),
    lambda repository: repository.get("nowhere"),
    lambda repository: repository.get_by_correlation(correlation_of("order")),
    lambda repository: list(repository.events("order")),
    lambda repository: list(repository.events("nowhere")),
    lambda repository: repository.rebuild("order"),
    lambda repository: repository.rebuild(),
    lambda repository: repository.verify("order"),
    lambda repository: repository.verify(),
    lambda repository: repository.as_of("order", seq=1),
    lambda repository: repository.list_pending(),
    lambda repository: repository.ask("order", required_fields=["place"]),
    lambda repository: repository.notify_wait("order"),
    lambda repository: repository.create(
        correlation_id=correlation_of("new"), turn_id=1, reason_code=1, idempotency_key="create"
    ),
    lambda repository: repository.set_field("order", "place", "Oslo"),
    lambda repository: repository.cancel("order", reason_code=1, idempotency_key="cancel"),
    lambda repository: LeaseRepository(repository._conn).acquire("order", "worker-1", ttl_ms=1_000),
    lambda repository: LeaseRepository(repository._conn).renew("order", "t" * 20, ttl_ms=1_000),
    lambda repository: LeaseRepository(repository._conn).release("order", "t" * 20),
    lambda repository: LeaseRepository(repository._conn).current("order"),
    lambda repository: StepAttemptRepository(repository._conn).start(
        "order", "book", timeout_ms=1, max_retries=1, retry_backoff_ms=1, idempotency_key="k"
    ),
    lambda repository: StepAttemptRepository(repository._conn).finish(1, outcome="FAILED", reason_code=1),
    lambda repository: StepAttemptRepository(repository._conn).history("order"),
    lambda repository: StepAttemptRepository(repository._conn).due_retries(1),
]


def tenant_of(conn: sa.Connection) -> str | None:
    """Ask the database for the tenant; '' and NULL are none."""
    setting: str | None = conn.exec_driver_sql("SELECT current_setting('selene.tenant_id', TRUE)").scalar()
    return setting or None


def exists(engine: sa.Engine, work_order_id: str, tenant_id: str = "acme") -> bool:
    with tenant_scope(engine, tenant_id) as conn:
        return WorkOrderRepository(conn).get(work_order_id) is not None


def append_and_fail(conn: sa.Connection) -> None:
    WorkOrderRepository(conn).append(created("order"))
    raise KeyError


@pytest.fixture
def one_connection(database: Database) -> sa.Engine:
    """Return an engine whose every connection is the same session of the server."""
    return database.engine("app", pool_size=1, max_overflow=0, pool_timeout=5)


# --- on an engine


def test_engine__commits_at_the_end(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        WorkOrderRepository(conn).append(created("order"))
        assert tenant_of(conn) == "acme"
        assert scope_tenant(conn) == "acme"
        assert not exists(engine, "order")
    assert exists(engine, "order")


def test_engine__rolls_back_on_an_exception(engine: sa.Engine) -> None:
    with pytest.raises(KeyError), tenant_scope(engine, "acme") as conn:
        append_and_fail(conn)
    assert not exists(engine, "order")


def test_engine__sees_one_tenant(engine: sa.Engine, admin_engine: sa.Engine) -> None:
    append_events(engine, "acme", [created("ours")])
    append_events(engine, "rival", [created("theirs")])
    for each in (engine, admin_engine):  # row-level security does not hold for a superuser, the WHERE does
        with tenant_scope(each, "acme") as conn:
            repository = WorkOrderRepository(conn)
            assert repository.get("ours") is not None
            assert repository.get("theirs") is None
            assert repository.get_by_correlation(correlation_of("theirs")) is None
            assert list(repository.events("theirs")) == []
            assert repository.as_of("theirs", seq=1) is None
            assert repository.verify() == []
            assert repository.rebuild().work_orders == 1


@pytest.mark.parametrize("tenant_id", ["a", "A9._:/@+-", "0", "x" * 64])
def test_engine__takes_every_tenant_id(engine: sa.Engine, tenant_id: str) -> None:
    with tenant_scope(engine, tenant_id) as conn:
        assert tenant_of(conn) == tenant_id


@pytest.mark.parametrize(
    "tenant_id", ["", " ", "a b", "x" * 65, "a'; SELECT 1 --", "a\0", "é", "%s", None, 5]
)
def test_engine__refuses_what_is_no_tenant_id(tenant_id: Any) -> None:
    nowhere = sa.create_engine("postgresql+psycopg://nobody@/nothing?host=/nonexistent")
    with pytest.raises(ContractViolation) as caught, tenant_scope(nowhere, tenant_id):
        pass
    assert caught.value.field == "tenant_id"


def test_engine__sessions_are_shared_by_tenants(one_connection: sa.Engine) -> None:
    for tenant_id in ("acme", "rival", "acme"):
        with tenant_scope(one_connection, tenant_id) as conn:
            assert tenant_of(conn) == tenant_id
            assert not conn.info
    with one_connection.connect() as conn:
        assert tenant_of(conn) is None
        with pytest.raises(TenantScopeViolation):
            scope_tenant(conn)


def test_engine__what_a_session_was_left_with_counts_for_nothing(one_connection: sa.Engine) -> None:
    append_events(one_connection, "acme", [created("ours")])
    with one_connection.begin() as conn:
        conn.exec_driver_sql("SET selene.tenant_id = 'rival'")
    with tenant_scope(one_connection, "acme") as conn:
        assert tenant_of(conn) == "acme"
        assert WorkOrderRepository(conn).get("ours") is not None
        WorkOrderRepository(conn).append(event("STEP_STARTED", "ours"))
        conn.exec_driver_sql("COMMIT")
        assert tenant_of(conn) == "rival"
        with pytest.raises(TenantScopeViolation):
            WorkOrderRepository(conn).get("ours")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_engine__at_every_isolation_level(engine: sa.Engine, level: Any) -> None:
    with tenant_scope(engine.execution_options(isolation_level=level), "acme") as conn:
        assert WorkOrderRepository(conn).append(created("order")).work_order_seq == 1
        assert WorkOrderRepository(conn).get("order") is not None


# --- in AUTOCOMMIT, where SET LOCAL would be gone at once


def test_autocommit__is_refused(database: Database) -> None:
    engine = database.engine("app", isolation_level="AUTOCOMMIT")
    with pytest.raises(TenantScopeViolation, match="AUTOCOMMIT"), tenant_scope(engine, "acme"):
        pass
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of QueuePool


def test_autocommit__as_an_option_is_refused(engine: sa.Engine) -> None:
    option = engine.execution_options(isolation_level="AUTOCOMMIT")
    with pytest.raises(TenantScopeViolation, match="AUTOCOMMIT"), tenant_scope(option, "acme"):
        pass
    with option.connect() as conn:
        with pytest.raises(TenantScopeViolation, match="AUTOCOMMIT"), tenant_scope(conn, "acme"):
            pass
        assert not conn.in_transaction()


# --- on a connection


def test_connection__begins_and_commits(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        with tenant_scope(conn, "acme") as same:
            assert same is conn
            WorkOrderRepository(conn).append(created("order"))
        assert not conn.in_transaction()
        assert exists(engine, "order")
        with tenant_scope(conn, "rival"):
            assert WorkOrderRepository(conn).get("order") is None


def test_connection__rolls_back_what_it_began(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        with pytest.raises(KeyError), tenant_scope(conn, "acme"):
            append_and_fail(conn)
        assert not conn.in_transaction()
        with tenant_scope(conn, "acme"):
            assert WorkOrderRepository(conn).get("order") is None


def test_connection__joins_what_somebody_began(engine: sa.Engine) -> None:
    with engine.connect() as conn, conn.begin() as transaction:
        with tenant_scope(conn, "acme"):
            WorkOrderRepository(conn).append(created("order"))
        assert transaction.is_active
        assert not exists(engine, "order")
        with tenant_scope(conn, "acme"):
            assert WorkOrderRepository(conn).get("order") is not None
        transaction.rollback()
    assert not exists(engine, "order")


def test_connection__leaves_an_exception_to_whoever_began(engine: sa.Engine) -> None:
    with engine.begin() as conn, pytest.raises(KeyError), tenant_scope(conn, "acme"):
        append_and_fail(conn)
    assert exists(engine, "order")


def test_connection__joins_a_transaction_with_its_tenant(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        with tenant_scope(conn, "acme"):
            assert tenant_of(conn) == "acme"


@pytest.mark.parametrize(
    "setting", ["SET LOCAL selene.tenant_id = 'rival'", "SET selene.tenant_id = 'rival'"]
)
def test_connection__refuses_a_transaction_with_another_tenant(engine: sa.Engine, setting: str) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql(setting)
        with pytest.raises(TenantScopeViolation) as caught, tenant_scope(conn, "acme"):
            pass
        assert "rival" not in str(caught.value)
        assert tenant_of(conn) == "rival"
        with tenant_scope(conn, "rival"):
            assert scope_tenant(conn) == "rival"


def test_connection__takes_no_second_tenant_after_the_block(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        with tenant_scope(conn, "acme"):
            pass
        with pytest.raises(TenantScopeViolation), tenant_scope(conn, "rival"):
            pass


def test_nested__same_tenant(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        with tenant_scope(conn, "acme"):
            WorkOrderRepository(conn).append(created("inner"))
        assert scope_tenant(conn) == "acme"
        WorkOrderRepository(conn).append(created("outer"))
    assert exists(engine, "inner")
    assert exists(engine, "outer")


def test_nested__another_tenant_is_refused(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        with pytest.raises(TenantScopeViolation), tenant_scope(conn, "rival"):
            pass
        assert scope_tenant(conn) == "acme"
        WorkOrderRepository(conn).append(created("order"))
    assert exists(engine, "order")


def test_nested__in_a_savepoint(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        with pytest.raises(SeleneError), conn.begin_nested():
            WorkOrderRepository(conn).append(event("STEP_STARTED", "nowhere"))
        WorkOrderRepository(conn).append(created("order"))
    assert exists(engine, "order")


# --- without a scope, or past its end


def test_no_scope__every_call_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.exec_driver_sql("SET LOCAL selene.tenant_id = 'acme'")
        for call in EVERY_CALL:
            with pytest.raises(TenantScopeViolation, match="not inside a tenant_scope"):
                call(WorkOrderRepository(conn))


def test_past_the_scope__every_call_is_refused(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        with tenant_scope(conn, "acme"):
            repository = WorkOrderRepository(conn)
            repository.append(created("order"))
        for call in EVERY_CALL:
            with pytest.raises(TenantScopeViolation, match="not inside a tenant_scope"):
                call(repository)
    for call in EVERY_CALL:  # on a closed connection
        with pytest.raises(TenantScopeViolation):
            call(repository)


def _raw(statement: str) -> Callable[[sa.Connection], object]:
    return lambda conn: conn.exec_driver_sql(statement)


ENDINGS: dict[str, Callable[[sa.Connection], object]] = {
    "commit": lambda conn: conn.commit(),
    "rollback": lambda conn: conn.rollback(),
    "close": lambda conn: conn.close(),
    "raw commit": _raw("COMMIT"),
    "raw rollback": _raw("ROLLBACK"),
    "raw commit, begin": _raw("COMMIT AND CHAIN"),
    "reset": _raw("RESET selene.tenant_id"),
    "reset all": _raw("RESET ALL"),
    "emptied": _raw("SET LOCAL selene.tenant_id = ''"),
    "another tenant": _raw("SET LOCAL selene.tenant_id = 'rival'"),
}


@contextmanager
def scope_on_engine(engine: sa.Engine) -> Iterator[sa.Connection]:
    with tenant_scope(engine, "acme") as conn:
        yield conn


@contextmanager
def scope_on_connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as conn, tenant_scope(conn, "acme"):
        yield conn


@contextmanager
def scope_in_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.connect() as conn:
        conn.exec_driver_sql("SELECT 1")
        with tenant_scope(conn, "acme"):
            yield conn


@pytest.mark.parametrize("scope", [scope_on_engine, scope_on_connection, scope_in_transaction])
@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS.keys())
def test_tenant_lost_in_the_block__every_call_is_refused(
    engine: sa.Engine,
    end: Callable[[sa.Connection], object],
    scope: Callable[[sa.Engine], AbstractContextManager[sa.Connection]],
) -> None:
    append_events(engine, "acme", [created("order")])
    for call in EVERY_CALL:
        with scope(engine) as conn:
            repository = WorkOrderRepository(conn)
            assert repository.get("order") is not None
            end(conn)
            with pytest.raises(TenantScopeViolation):
                call(repository)
            conn.rollback()
    with tenant_scope(engine, "acme") as conn:
        assert len(list(WorkOrderRepository(conn).events("order"))) == 1


def test_tenant_lost_in_the_block__with_the_savepoint_it_was_set_in(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        savepoint = conn.begin_nested()
        with tenant_scope(conn, "acme"):
            savepoint.rollback()
            with pytest.raises(TenantScopeViolation):
                WorkOrderRepository(conn).get("order")


def test_tenant_lost_in_the_block__what_was_committed_stays(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        WorkOrderRepository(conn).append(created("order"))
        conn.commit()
        with pytest.raises(TenantScopeViolation, match="ended"):
            WorkOrderRepository(conn).get("order")
    assert exists(engine, "order")


def test_tenant_lost_in_the_block__by_an_error_of_the_database(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        with pytest.raises(DBAPIError):
            conn.exec_driver_sql("SELECT 1 / 0")
        with pytest.raises(DBAPIError) as caught:
            WorkOrderRepository(conn).get("order")
        assert isinstance(caught.value.orig, psycopg.errors.InFailedSqlTransaction)


def test_sqlalchemy_says_the_same_to_other_statements(engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        conn.commit()
        with pytest.raises(InvalidRequestError, match="closed transaction"):
            conn.exec_driver_sql("SELECT 1")


# --- errors

REFUSAL: LiteralString = """DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'SL010', MESSAGE = 'held',
    DETAIL = '{"work_order_id": "order", "lease_owner_id": "worker-1"}'; END $$"""


def check_lease_held(error: LeaseHeld) -> None:
    assert (str(error), error.work_order_id, error.lease_owner_id) == ("held", "order", "worker-1")
    assert error.retryable


def test_translate_errors__of_sqlalchemy(engine: sa.Engine) -> None:
    with engine.connect() as conn, pytest.raises(LeaseHeld) as caught, translate_errors():
        conn.exec_driver_sql(REFUSAL)
    check_lease_held(caught.value)
    assert type(caught.value.__cause__) is sa.exc.DatabaseError


def test_translate_errors__of_psycopg(database: Database) -> None:
    with connect(database.app_url) as conn, pytest.raises(LeaseHeld) as caught, translate_errors():
        conn.execute(REFUSAL)
    check_lease_held(caught.value)
    assert isinstance(caught.value.__cause__, psycopg.Error)


@pytest.mark.parametrize("sqlstate", ["SL999", "SL000", "22012", "40001", "23505", "P0001"])
def test_translate_errors__what_is_not_known_passes(engine: sa.Engine, sqlstate: str) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION SQLSTATE '{sqlstate}'; END $$"
    with engine.connect() as conn, pytest.raises(DBAPIError) as caught, translate_errors():
        conn.exec_driver_sql(raising)
    assert isinstance(caught.value.orig, psycopg.Error)
    assert caught.value.orig.sqlstate == sqlstate


def test_translate_errors__of_others_passes() -> None:
    other = ProgrammingError("SELECT 1", {}, ValueError("of another driver"))
    with pytest.raises(ProgrammingError) as caught, translate_errors():
        raise other
    assert caught.value is other
    with pytest.raises(KeyError), translate_errors():
        raise KeyError
    with pytest.raises(psycopg.OperationalError, match="server is gone"), translate_errors():
        raise psycopg.OperationalError("server is gone")
