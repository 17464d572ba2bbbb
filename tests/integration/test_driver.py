"""What goes past SQLAlchemy's execution: the same answers, errors and transactions, in fewer round trips."""

import asyncio
import logging
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import create_async_engine

from selene_core import (
    AsyncWorkOrderRepository,
    TenantScopeViolation,
    WorkOrderNotFound,
    WorkOrderRepository,
    append_events,
    async_tenant_scope,
    tenant_scope,
)
from selene_core.store.driver import begin_with
from tests.support.factories import created, event
from tests.support.plans import driver_of, round_trips
from tests.support.races import backend_pid, end_session
from tests.support.servers import Database

KINDS = ["unwatched", "watched"]


@pytest.fixture(params=KINDS)
def either(request: pytest.FixtureRequest, database: Database) -> sa.Engine:
    """Return an engine of one connection, with a listener and without."""
    engine = database.engine("app", pool_size=1, max_overflow=0)
    if request.param == "watched":
        sa.event.listen(engine, "before_cursor_execute", lambda *_: None)
    return engine


def status_of(conn: sa.Connection) -> psycopg.pq.TransactionStatus:
    found: psycopg.pq.TransactionStatus = driver_of(conn).info.transaction_status
    return found


def test_scope__is_three_round_trips(engine: sa.Engine) -> None:
    with engine.connect() as conn, round_trips(driver_of(conn)) as found, tenant_scope(conn, "acme"):
        WorkOrderRepository(conn).append(created("order"))
    assert found == [3]  # the tenant with BEGIN, the call, COMMIT


def test_append_events__is_one_round_trip(database: Database) -> None:
    engine = database.engine("app", pool_size=1, max_overflow=0)
    append_events(engine, "acme", [created("order")])
    with engine.connect() as conn:
        driver = driver_of(conn)
    with round_trips(driver) as found:
        append_events(engine, "acme", [event("STEP_STARTED", "order")])
    assert found == [1]


def test_async_scope__is_three_round_trips(database: Database) -> None:
    async def main() -> list[int]:
        engine = create_async_engine(database.app_url)
        async with engine.connect() as conn:
            driver = (await conn.get_raw_connection()).driver_connection
            with round_trips(driver) as found:
                async with async_tenant_scope(conn, "acme"):
                    await AsyncWorkOrderRepository(conn).append(created("order"))
        await engine.dispose()
        return found

    assert asyncio.run(main()) == [3]


def test_scope__a_listener_sees_every_statement(engine: sa.Engine) -> None:
    seen: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    with tenant_scope(engine, "acme") as conn:
        WorkOrderRepository(conn).append(created("order"))
    append_events(engine, "acme", [event("STEP_STARTED", "order")])
    assert ["append_work_order_events" in statement for statement in seen] == [False, True, True]
    assert "SET LOCAL" in seen[0]


def test_scope__cursors_of_a_host_see_every_statement(database: Database) -> None:
    """So do those of a tool that traces what the driver does."""
    seen: list[str] = []

    class Tracing(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **options: Any) -> Any:
            seen.append(str(query))
            return super().execute(query, *args, **options)

    engine = database.engine("app", connect_args={"cursor_factory": Tracing})
    with engine.connect():
        seen.clear()  # what SQLAlchemy asks of a new connection
    with tenant_scope(engine, "acme") as conn:
        WorkOrderRepository(conn).append(created("order"))
    append_events(engine, "acme", [event("STEP_STARTED", "order")])
    assert ["append_work_order_events" in statement for statement in seen] == [False, True, True]
    assert "SET LOCAL" in seen[0]


def test_scope__a_log_has_every_statement(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sqlalchemy.engine"):
        engine = database.engine("app")
        with tenant_scope(engine, "acme") as conn:
            WorkOrderRepository(conn).append(created("order"))
    assert "SET LOCAL selene.tenant_id" in caplog.text
    assert "append_work_order_events" in caplog.text


@pytest.mark.parametrize(
    ("option", "shown"),
    [
        ({"isolation_level": "SERIALIZABLE"}, ("serializable", "off")),
        ({"postgresql_readonly": True}, ("read committed", "on")),
        ({}, ("read committed", "off")),
    ],
)
def test_scope__begins_as_the_connection_was_told(
    either: sa.Engine, option: dict[str, Any], shown: tuple[str, str]
) -> None:
    asked = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    with tenant_scope(either.execution_options(**option), "acme") as conn:
        assert tuple(conn.exec_driver_sql(asked).one()) == shown


def test_scope__joins_what_the_driver_has_begun(either: sa.Engine) -> None:
    """A host may have talked to the driver; then there is a transaction, and no second BEGIN."""
    notices: list[str] = []
    with either.connect() as conn:
        driver_of(conn).add_notice_handler(lambda notice: notices.append(notice.message_primary))
        driver_of(conn).execute("SELECT 1")
        with tenant_scope(conn, "acme"):
            WorkOrderRepository(conn).append(created("order"))
        assert status_of(conn) is psycopg.pq.TransactionStatus.IDLE
    assert notices == []


def test_scope__leaves_the_pipeline_of_a_host_open(either: sa.Engine) -> None:
    with either.connect() as conn, driver_of(conn).pipeline():
        with tenant_scope(conn, "acme"):
            found = driver_of(conn).execute("SELECT current_setting('selene.tenant_id')").fetchone()
        assert driver_of(conn).pgconn.pipeline_status == psycopg.pq.PipelineStatus.ON
    assert found == ("acme",)


def test_refusal__leaves_the_transaction_to_sqlalchemy(either: sa.Engine) -> None:
    with either.connect() as conn, conn.begin() as transaction:
        with pytest.raises(WorkOrderNotFound) as refused, tenant_scope(conn, "acme"):
            WorkOrderRepository(conn).append(event("STEP_STARTED", "order"))
        assert isinstance(refused.value.__cause__, DBAPIError)
        assert not refused.value.__cause__.connection_invalidated
        assert status_of(conn) is psycopg.pq.TransactionStatus.INERROR
        transaction.rollback()
        assert status_of(conn) is psycopg.pq.TransactionStatus.IDLE
    append_events(either, "acme", [created("order")])


def test_refusal__of_the_first_statement(either: sa.Engine) -> None:
    with either.connect() as conn:
        with pytest.raises(DBAPIError, match="no_such_setting") as refused, conn.begin():
            begin_with(conn, "SET LOCAL no_such_setting = 1")
        assert refused.value.statement == "SET LOCAL no_such_setting = 1"
        assert not refused.value.connection_invalidated
        assert status_of(conn) is psycopg.pq.TransactionStatus.IDLE
        with tenant_scope(conn, "acme"):
            WorkOrderRepository(conn).append(created("order"))


def test_error__shows_what_the_engine_shows(database: Database, admin_engine: sa.Engine) -> None:
    with admin_engine.begin() as admin:
        admin.exec_driver_sql("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA os_core FROM selene_app")
    for engine in database.engine("app"), database.engine("app", hide_parameters=True):
        with pytest.raises(DBAPIError) as refused:
            append_events(engine, "acme", [created("order")])
        assert "append_work_order_events" in (refused.value.statement or "")
        assert ("'acme'" in str(refused.value)) is not engine.hide_parameters
        assert "order" not in str(refused.value.params)  # the events are a secret


def test_lost_connection__is_given_up_where_the_scope_begins(
    either: sa.Engine, admin_engine: sa.Engine
) -> None:
    with either.connect() as conn:
        pid = backend_pid(conn)
        conn.rollback()
        end_session(admin_engine, pid)
        with pytest.raises(DBAPIError) as lost, tenant_scope(conn, "acme"):
            raise AssertionError
        assert lost.value.connection_invalidated
        assert isinstance(lost.value.orig, psycopg.errors.AdminShutdown)  # and not only that it is lost
        assert conn.invalidated
    append_events(either, "acme", [created("order")])  # on the pool's next connection


def test_lost_connection__is_given_up_in_the_scope(either: sa.Engine, admin_engine: sa.Engine) -> None:
    def work() -> None:
        with tenant_scope(either, "acme") as conn:
            end_session(admin_engine, backend_pid(conn))
            WorkOrderRepository(conn).append(created("order"))

    with pytest.raises(DBAPIError) as lost:
        work()
    assert lost.value.connection_invalidated
    append_events(either, "acme", [created("order")])


def test_lost_connection__of_append_events_is_given_up(either: sa.Engine, admin_engine: sa.Engine) -> None:
    with either.connect() as conn:
        pid = backend_pid(conn)
    end_session(admin_engine, pid)
    with pytest.raises(DBAPIError) as lost:
        append_events(either, "acme", [created("order")])
    assert lost.value.connection_invalidated
    append_events(either, "acme", [created("order")])


def test_ended_transaction__is_refused_as_by_sqlalchemy(either: sa.Engine) -> None:
    with either.connect() as conn, conn.begin(), tenant_scope(conn, "acme"):
        savepoint = conn.begin_nested()
        savepoint.rollback()
        WorkOrderRepository(conn).append(created("order"))
        transaction = conn.get_transaction()
        assert transaction is not None
        transaction.rollback()
        with pytest.raises(TenantScopeViolation):
            WorkOrderRepository(conn).get("order")


def test_ended_savepoint__is_refused_as_by_sqlalchemy(either: sa.Engine, admin_engine: sa.Engine) -> None:
    """A savepoint that could not be rolled back: nothing may be sent until the whole transaction is."""

    def lose(conn: sa.Connection) -> None:
        with conn.begin_nested():
            end_session(admin_engine, backend_pid(conn))
            WorkOrderRepository(conn).append(created("order"))

    def work() -> None:
        with tenant_scope(either, "acme") as conn:
            with pytest.raises(DBAPIError):
                lose(conn)
            WorkOrderRepository(conn).append(created("order"))

    with pytest.raises(PendingRollbackError):
        work()
