"""What the database owes whoever writes to it: four contracts, proved in SQL through the application role.

The owner and the superuser are there to look, to damage, and to show that they do not get through either.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from psycopg.types.json import Jsonb

from tests.support.calls import Appended, Tenant, append, as_of, rebuild, rebuild_one, refused, verify
from tests.support.factories import correlation_of, wire
from tests.support.raw import Connection, connect
from tests.support.servers import Database

LEDGER = "os_core.work_order_ledger"
CURRENT = "os_core.work_orders_current"
CHILDREN = ("os_core.work_order_leases", "os_core.work_order_step_attempts")
NO_TENANT = ["RESET selene.tenant_id", "SET LOCAL selene.tenant_id = ''"]
PERMISSION_DENIED = "42501"
FEATURE_NOT_SUPPORTED = "0A000"


@dataclass(frozen=True, slots=True)
class Logins:
    """A connection in autocommit for each kind of role."""

    app: Connection
    readonly: Connection
    owner: Connection
    admin: Connection

    @property
    def guests(self) -> list[Connection]:
        """Those who hold privileges that somebody granted."""
        return [self.app, self.readonly]

    @property
    def masters(self) -> list[Connection]:
        """Those who may do anything to the tables."""
        return [self.owner, self.admin]

    def everything(self) -> list[Any]:
        """Return all rows and where each lies: a write that changes nothing would show too."""
        query = "SELECT tableoid::regclass::text, ctid::text, row::text FROM {0} AS row ORDER BY 3"
        return [run(self.admin, query.format(table)).fetchall() for table in (LEDGER, CURRENT)]


@pytest.fixture
def logins(database: Database) -> Iterator[Logins]:
    """Log in as everybody."""
    urls = (database.app_url, database.readonly_url, database.owner_url, database.admin_url)
    with ExitStack() as stack:
        yield Logins(*(stack.enter_context(connect(url, autocommit=True)) for url in urls))


def run(conn: Connection, statement: str, *parameters: Any) -> psycopg.Cursor[tuple[Any, ...]]:
    return conn.execute(statement.encode(), parameters or None)


def order_ids(conn: Connection, table: str) -> list[str]:
    return [row[0] for row in run(conn, f"SELECT DISTINCT work_order_id FROM {table} ORDER BY 1")]


@contextmanager
def tenant(conn: Connection, tenant_id: str) -> Iterator[None]:
    """Open a transaction for a tenant."""
    with conn.transaction():
        run(conn, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
        yield


def sqlstate_of(conn: Connection, tenant_id: str, *statements: str) -> str | None:
    """Run statements for a tenant and take them back; return the SQLSTATE with which one was refused."""
    try:
        with conn.transaction(force_rollback=True):
            run(conn, f"SET LOCAL selene.tenant_id = '{tenant_id}'")
            for statement in statements:
                run(conn, statement)
    except psycopg.Error as exc:
        return exc.sqlstate
    return None


# --- 01


def test_at_os_core_db_01_tenant_isolation_enforced(logins: Logins) -> None:
    append(logins.app, "acme", wire("WORK_ORDER_CREATED", "ours"), wire("FIELD_SET", "ours"))
    append(logins.app, "rival", wire("WORK_ORDER_CREATED", "theirs"))
    everything = logins.everything()
    for conn in (*logins.guests, logins.owner):
        check_a_tenant_reads_its_own_rows_only(conn)
        check_no_tenant_reads_nothing(conn)
        check_the_policies_cannot_be_switched_off(conn)
    check_no_function_takes_a_second_tenant(logins)
    check_what_another_tenant_has_is_not_there(logins.app)
    check_no_row_is_written_past_the_policies(logins)
    check_a_later_policy_opens_nothing(logins.owner)
    assert logins.everything() == everything
    check_tenants_share_no_names(logins.app)


def check_a_tenant_reads_its_own_rows_only(conn: Connection) -> None:
    for tenant_id, own, other in (
        ("acme", ["ours"], "rival"),
        ("rival", ["theirs"], "acme"),
        ("nobody", [], "acme"),
    ):
        with tenant(conn, tenant_id):
            for table in (LEDGER, CURRENT):
                assert order_ids(conn, table) == own
                assert run(conn, f"SELECT FROM {table} WHERE tenant_id = '{other}'").rowcount == 0


def check_no_tenant_reads_nothing(conn: Connection) -> None:
    """Neither in a new session, nor where it is empty, nor after a transaction that had one."""
    for setting in ("SELECT 1", *NO_TENANT):
        with conn.transaction():
            run(conn, setting)
            assert order_ids(conn, LEDGER) == order_ids(conn, CURRENT) == []
    assert order_ids(conn, LEDGER) == order_ids(conn, CURRENT) == []


def check_the_policies_cannot_be_switched_off(conn: Connection) -> None:
    for table in (LEDGER, CURRENT):  # an error, and not all rows
        queries = ("SET LOCAL row_security = off", f"SELECT FROM {table}")
        assert sqlstate_of(conn, "acme", *queries) == PERMISSION_DENIED


def check_no_function_takes_a_second_tenant(logins: Logins) -> None:
    calls = [
        ("append_work_order_events('rival', %s)", [Jsonb([wire("STEP_STARTED", "theirs")])]),
        ("rebuild_work_orders('rival', '', 10)", []),
        ("rebuild_work_order('rival', 'theirs')", []),
        ("verify_work_orders('rival')", []),
        ("work_order_as_of('rival', 'theirs', 1)", []),
        ("require_tenant('rival')", []),
        ("lock_work_order('rival', 'theirs')", []),
        ("cancel_work_order('rival', 'theirs', 1, 'key')", []),
        ("notify_wait('rival', 'theirs')", []),
        ("ask_field('rival', 'theirs', '{place}')", []),
    ]
    for call, parameters in calls:
        with refused("SL002") as refusal, tenant(logins.app, "acme"):
            run(logins.app, f"SELECT * FROM os_core.{call}", *parameters)
        assert "acme" not in refusal.message
        assert "rival" not in refusal.message
        if not call.startswith("require_tenant"):  # which readers call beside what they read
            with pytest.raises(InsufficientPrivilege), tenant(logins.readonly, "rival"):
                run(logins.readonly, f"SELECT * FROM os_core.{call}", *parameters)
    for setting in NO_TENANT:
        with refused("SL002"), logins.app.transaction():
            run(logins.app, setting)
            run(logins.app, "SELECT os_core.require_tenant('acme')")


def check_what_another_tenant_has_is_not_there(app: Connection) -> None:
    with refused("SL016"):
        append(app, "acme", wire("STEP_STARTED", "theirs"))
    with refused("SL015") as refusal:  # that the id is taken is all that it says
        append(app, "acme", wire("WORK_ORDER_CREATED", "theirs"))
    assert refusal.facts == {"work_order_id": "theirs"}
    assert as_of(app, "acme", "theirs", seq=1) is None
    assert rebuild_one(app, "acme", "theirs").work_orders == 0
    assert verify(app, "acme", "theirs") == {}


def check_no_row_is_written_past_the_policies(logins: Logins) -> None:
    new_event = (
        f"INSERT INTO {LEDGER} (tenant_id, work_order_id, work_order_seq, correlation_id, turn_id,"
        " event_type, work_order_status, reason_code, payload, event_hash)"
        f" VALUES ('%s', 'new', 1, '{uuid4()}', 1, 'WORK_ORDER_CREATED', 'DRAFT', 1, '{{}}', sha256(''))"
    )
    for conn in logins.guests:
        for statement in (
            new_event % "acme",
            f"INSERT INTO {CURRENT} SELECT * FROM {CURRENT}",
            *(f"UPDATE {table} SET turn_id = 9" for table in (LEDGER, CURRENT)),
            *(f"DELETE FROM {table}" for table in (LEDGER, CURRENT)),
            *(f"TRUNCATE {table} CASCADE" for table in (LEDGER, CURRENT)),
            *(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY" for table in (LEDGER, CURRENT)),
            *(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY" for table in (LEDGER, CURRENT)),
            *(f"DROP POLICY tenant_confine ON {table}" for table in (LEDGER, CURRENT)),
            "SET ROLE selene_owner",
        ):
            assert sqlstate_of(conn, "acme", statement) == PERMISSION_DENIED, statement

    # The owner may write to the tables: of one tenant at a time, and of none without.
    owner = logins.owner
    assert sqlstate_of(owner, "acme", new_event % "acme") is None
    for statement in (
        new_event % "rival",
        f"UPDATE {CURRENT} SET tenant_id = 'rival', work_order_id = 'moved'",
    ):
        assert sqlstate_of(owner, "acme", statement) == PERMISSION_DENIED, statement
    with tenant(owner, "acme"):
        assert run(owner, f"UPDATE {CURRENT} SET turn_id = 9 WHERE tenant_id = 'rival'").rowcount == 0
        assert run(owner, f"DELETE FROM {CURRENT} WHERE work_order_id = 'theirs'").rowcount == 0
    for setting in NO_TENANT:
        with refused("SL002"), owner.transaction():
            run(owner, setting)
            run(owner, new_event % "acme")


def check_a_later_policy_opens_nothing(owner: Connection) -> None:
    for table in (LEDGER, CURRENT):
        with owner.transaction(force_rollback=True):
            run(owner, f"CREATE POLICY open ON {table} FOR ALL TO PUBLIC USING (TRUE) WITH CHECK (TRUE)")
            assert order_ids(owner, table) == []
            run(owner, "SET LOCAL selene.tenant_id = 'acme'")
            assert order_ids(owner, table) == ["ours"]


def check_tenants_share_no_names(app: Connection) -> None:
    """What is unique in one tenant is free in the other: idempotency keys, correlations."""
    event = wire("WORK_ORDER_CREATED", "ours-2", idempotency_key="k", correlation_id=str(uuid4()))
    assert not append(app, "acme", event)[0].replayed
    assert not append(app, "rival", {**event, "work_order_id": "theirs-2"})[0].replayed


# --- 02


def test_at_os_core_db_02_append_only_enforced(logins: Logins) -> None:
    first, _ = append(logins.app, "acme", wire("WORK_ORDER_CREATED", "order"), wire("FIELD_SET", "order"))
    everything = logins.everything()
    for statement in rewriting_statements(first.work_order_event_id):
        check_is_refused_to_everybody(logins, statement)
        assert logins.everything() == everything, statement
    check_truncate_is_refused_without_the_foreign_key(logins)
    check_each_trigger_stands_alone(logins.admin)
    check_the_guests_cannot_disarm_it(logins)
    for conn in logins.masters:
        check_nothing_cascades_into_it(conn)
    check_what_a_caller_cannot_supply(logins.app)
    assert logins.everything() == everything


def rewriting_statements(event_id: int) -> Iterator[str]:
    """Yield every way that SQL has to change, replace or remove rows, also where there are none to meet."""
    insert = (
        f"INSERT INTO {LEDGER} (work_order_event_id, tenant_id, work_order_id, work_order_seq,"
        " correlation_id, turn_id, event_type, work_order_status, reason_code, payload, event_hash)"
        f" VALUES ({event_id}, 'acme', 'order', 1, '{uuid4()}', 1, 'WORK_ORDER_CREATED', 'DRAFT', 1, '{{}}',"
        " sha256('')) ON CONFLICT"
    )
    merge = (
        f"MERGE INTO {LEDGER} AS target USING (SELECT {event_id}::bigint AS id) AS source"
        " ON target.work_order_event_id = source.id WHEN MATCHED THEN"
    )
    yield from (
        f"UPDATE {LEDGER} SET payload = '{{\"forged\": 1}}'",
        f"UPDATE {LEDGER} SET payload = payload WHERE work_order_event_id = {event_id}",
        f"UPDATE {LEDGER} SET payload = '{{}}' WHERE FALSE",
        f"UPDATE ONLY {LEDGER} SET created_at = now()",
        f"WITH changed AS (UPDATE {LEDGER} SET reason_code = 2 RETURNING 1) SELECT * FROM changed",
        f"DELETE FROM {LEDGER}",
        f"DELETE FROM {LEDGER} WHERE work_order_event_id = {event_id}",
        f"DELETE FROM {LEDGER} WHERE FALSE",
        f"TRUNCATE {LEDGER} CASCADE",
        f"TRUNCATE {LEDGER}, {CURRENT}, {', '.join(CHILDREN)} RESTART IDENTITY",
        f"{insert} (work_order_event_id) DO UPDATE SET payload = '{{\"forged\": 1}}'",
        f"{insert} (tenant_id, work_order_id, work_order_seq) DO UPDATE SET reason_code = 2",
        f"{insert} ON CONSTRAINT pk_work_order_ledger DO UPDATE SET turn_id = 2 WHERE FALSE",
        f"{merge} UPDATE SET reason_code = 2",
        f"{merge} DELETE",
    )


def check_is_refused_to_everybody(logins: Logins, statement: str) -> None:
    """By lack of privilege, else by the triggers: in replica mode too, in which ordinary triggers sleep."""
    for conn in logins.guests:
        assert sqlstate_of(conn, "acme", statement) == PERMISSION_DENIED, statement
    for conn in logins.masters:
        with refused("SL003") as refusal, tenant(conn, "acme"):
            run(conn, statement)
        assert refusal.facts["table"] == LEDGER
        assert refusal.facts["operation"] in {"UPDATE", "DELETE", "TRUNCATE"}
    assert sqlstate_of(logins.admin, "acme", "SET session_replication_role = replica", statement) == "SL003"
    if not statement.startswith("INSERT"):  # without a tenant it sees no rows, and meets the triggers still
        with refused("SL003"):
            run(logins.owner, statement)


def check_truncate_is_refused_without_the_foreign_key(logins: Logins) -> None:
    """Which is what a TRUNCATE of the ledger alone fails at first."""
    unlink = f"ALTER TABLE {CURRENT} DROP CONSTRAINT fk_work_orders_current_last_event"
    for conn in logins.guests:
        assert sqlstate_of(conn, "acme", f"TRUNCATE {LEDGER}") == PERMISSION_DENIED
    for conn in logins.masters:
        assert sqlstate_of(conn, "acme", f"TRUNCATE {LEDGER}") == FEATURE_NOT_SUPPORTED
        assert sqlstate_of(conn, "acme", unlink, f"TRUNCATE {LEDGER}") == "SL003"
    replica = "SET session_replication_role = replica"
    assert sqlstate_of(logins.admin, "acme", unlink, replica, f"TRUNCATE {LEDGER}") == "SL003"


def check_each_trigger_stands_alone(admin: Connection) -> None:
    """Logical apply fires row triggers only, a statement that meets no row statement triggers only."""
    for other in ("reject_mutation_row", "reject_mutation_statement"):
        for statement in (f"UPDATE {LEDGER} SET reason_code = 2", f"DELETE FROM {LEDGER}"):
            disarm = f"ALTER TABLE {LEDGER} DISABLE TRIGGER {other}"
            replica = "SET session_replication_role = replica"
            assert sqlstate_of(admin, "acme", disarm, replica, statement) == "SL003"


def check_the_guests_cannot_disarm_it(logins: Logins) -> None:
    function = "FUNCTION os_core.reject_mutation()"
    for conn in logins.guests:
        for statement in (
            *(f"TRUNCATE {CURRENT}{cascade}" for cascade in ("", " CASCADE", " RESTART IDENTITY CASCADE")),
            f"ALTER TABLE {LEDGER} DISABLE TRIGGER ALL",
            f"ALTER TABLE {LEDGER} ENABLE REPLICA TRIGGER reject_mutation_row",
            f"DROP TRIGGER reject_mutation_row ON {LEDGER}",
            f"DROP TABLE {LEDGER} CASCADE",
            f"DROP {function} CASCADE",
            f"CREATE OR REPLACE {function} RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            f"CREATE TRIGGER mine BEFORE INSERT ON {LEDGER} FOR EACH ROW EXECUTE {function}",
            f"CREATE RULE mine AS ON INSERT TO {LEDGER} DO INSTEAD NOTHING",
            f"CREATE TABLE os_core.mine (LIKE {LEDGER})",
            f"SELECT * FROM {LEDGER} FOR UPDATE",
            "SELECT nextval('os_core.work_order_ledger_work_order_event_id_seq')",
            "SELECT setval('os_core.work_order_ledger_work_order_event_id_seq', 1)",
            "SET session_replication_role = replica",
            "SET ROLE selene_owner",
        ):
            assert sqlstate_of(conn, "acme", statement) == PERMISSION_DENIED, statement


def check_nothing_cascades_into_it(conn: Connection) -> None:
    """Neither from the projection nor from a table that the ledger is made to reference."""
    with refused("SL003") as refusal, conn.transaction():
        run(conn, f"TRUNCATE {CURRENT} CASCADE")  # leases and attempts are kept too
    assert refusal.facts["table"] in CHILDREN
    with conn.transaction(force_rollback=True):
        for child in CHILDREN:
            run(conn, f"ALTER TABLE {child} DROP CONSTRAINT fk_{child.partition('.')[2]}_work_order")
        run(conn, f"TRUNCATE {CURRENT} CASCADE")
        run(conn, "SET LOCAL selene.tenant_id = 'acme'")
        assert run(conn, f"SELECT FROM {LEDGER}").rowcount == 2
    parent = (
        "CREATE TABLE os_core.parent (id text PRIMARY KEY)",
        "INSERT INTO os_core.parent VALUES ('acme')",
        f"ALTER TABLE {LEDGER} ADD FOREIGN KEY (tenant_id) REFERENCES os_core.parent"
        " ON DELETE CASCADE ON UPDATE CASCADE",
    )
    assert sqlstate_of(conn, "acme", *parent) is None
    for statement in (
        "DELETE FROM os_core.parent",
        "UPDATE os_core.parent SET id = 'x'",
        "TRUNCATE os_core.parent CASCADE",
    ):
        assert sqlstate_of(conn, "acme", *parent, statement) == "SL003", statement


def check_what_a_caller_cannot_supply(app: Connection) -> None:
    values = {
        "work_order_event_id": 1,
        "work_order_seq": 9,
        "created_at": "2020-01-01T00:00:00Z",
        "tenant_id": "acme",
    }
    for name, value in values.items():
        with refused("SL001") as refusal:
            append(app, "acme", {**wire("STEP_STARTED", "order"), name: value})
        assert refusal.facts["field"] == name


# --- 03


def test_at_os_core_db_03_idempotency_dedupe_works(logins: Logins, database: Database) -> None:
    fields = {"fields": {"a": 1, "b": [1.5]}}
    creation = wire("WORK_ORDER_CREATED", "order", idempotency_key="create", payload=fields)
    step = wire("STEP_STARTED", "order", idempotency_key="step", step_id="s1")
    created, started = append(logins.app, "acme", creation, step)

    check_a_retry_returns_the_original(logins, creation, created)
    check_other_content_is_refused(logins, (creation, created), (step, started))
    check_a_batch_dedupes_too(logins, creation)
    check_a_key_belongs_to_one_order(logins.app)
    check_of_many_at_once_one_writes(database)
    append(logins.app, "acme", wire("WORK_ORDER_CANCELED", "order"))
    check_a_retry_returns_the_original(logins, creation, created)  # nothing else may follow a terminal status
    check_a_retry_returns_the_original(logins, step, started)
    assert verify(logins.app, "acme") == {}


def check_a_retry_returns_the_original(logins: Logins, event: dict[str, Any], original: Appended) -> None:
    everything = logins.everything()
    replay = Appended(original.work_order_event_id, original.work_order_seq, True, original.created_at)
    retold = {  # clocks, expectations and tokens are not content, nor is how JSON is written
        **event,
        "occurred_at": "2026-01-01T00:00:00+02:00",
        "expected_seq": 99,
        "lease_token": "0123456789abcdef",
        "payload": dict(reversed(event["payload"].items())),
        "correlation_id": event["correlation_id"].upper(),
    }
    for again in (event, retold):
        assert append(logins.app, "acme", again) == [replay]
        assert append(logins.app, "acme", again, event) == [replay, replay]
    assert logins.everything() == everything


def check_other_content_is_refused(logins: Logins, *originals: tuple[dict[str, Any], Appended]) -> None:
    everything = logins.everything()
    for event, original in originals:
        for change in (
            {"turn_id": 2},
            {"reason_code": 2},
            {"correlation_id": str(uuid4())},
            {"work_order_status": "CLARIFY"},
            {"event_type": "STEP_FINISHED", "payload": {}},
            {"event_type": "STEP_STARTED", "payload": {"more": 1}},
            {"step_id": "s2"},
            {"step_input_hash": "h"},
        ):
            for before in ([], [wire("STEP_STARTED", "order")]):
                with refused("SL005") as refusal:
                    append(logins.app, "acme", *before, {**event, **change})
                assert refusal.facts == {
                    "work_order_id": "order",
                    "idempotency_key": event["idempotency_key"],
                    "work_order_event_id": original.work_order_event_id,
                    "event_index": len(before),
                }
    assert logins.everything() == everything


def check_a_batch_dedupes_too(logins: Logins, creation: dict[str, Any]) -> None:
    """Within itself as well; replays and new events mix."""
    news = wire("STEP_FINISHED", "order", idempotency_key="finish")
    plain = wire("STEP_STARTED", "order")
    results = append(logins.app, "acme", news, creation, plain, news, plain)
    assert [(result.work_order_seq, result.replayed) for result in results] == [
        *((3, False), (1, True), (4, False), (3, True), (5, False))
    ]
    everything = logins.everything()
    with refused("SL005") as refusal:
        twice = wire("STEP_STARTED", "order", idempotency_key="twice")
        append(logins.app, "acme", twice, {**twice, "turn_id": 2})
    assert refusal.facts["event_index"] == 1
    assert logins.everything() == everything


def check_a_key_belongs_to_one_order(app: Connection) -> None:
    (result,) = append(app, "acme", wire("WORK_ORDER_CREATED", "another", idempotency_key="create"))
    assert not result.replayed


def check_of_many_at_once_one_writes(database: Database) -> None:
    def one_of_many(event: dict[str, Any]) -> tuple[int, bool]:
        with connect(database.app_url, autocommit=True) as conn:
            (result,) = append(conn, "acme", event)
        return result.work_order_event_id, result.replayed

    for event in (
        wire("WORK_ORDER_CREATED", "raced", idempotency_key="one"),
        wire("STEP_STARTED", "raced", idempotency_key="two"),
    ):
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(one_of_many, [event] * 16))
        assert len({event_id for event_id, _ in outcomes}) == 1
        assert sorted(replayed for _, replayed in outcomes) == [False] + [True] * 15


# --- 04


def test_at_os_core_db_04_rebuild_current_from_ledger(logins: Logins, database: Database) -> None:
    acme = Tenant("acme", logins.app, logins.admin)
    rival = Tenant("rival", logins.app, logins.admin)
    write_some_orders(acme, rival)
    ledger, right, theirs = acme.ledger(), acme.projections(), rival.projections()
    assert acme.verify() == {}

    for statements, wrong in damages(right):
        ways: list[Callable[[], int]] = [
            lambda: acme.rebuild(limit=1).changed,
            lambda: acme.rebuild(limit=1000).changed,
            lambda: sum(acme.rebuild_one(name).changed for name in sorted(wrong)),  # noqa: B023 - called at once
        ]
        for mend in ways:
            for statement in statements:
                assert acme.damage(statement) > 0, statement
            assert set(acme.verify()) == wrong, statements
            assert mend() == len(wrong), statements
            assert acme.projections() == right, statements
            assert acme.verify() == {}
    assert rebuild(logins.app, "acme").changed == 0

    # It has read the ledger and left it alone; another tenant's row stays as wrong as it is.
    assert acme.ledger() == ledger
    assert rival.projections() == theirs
    assert set(rival.verify()) == {"theirs"}
    check_every_prefix(acme)
    check_appends_go_on_meanwhile(acme, database)


def write_some_orders(acme: Tenant, rival: Tenant) -> None:
    """Write orders in which every column of the projection is used."""
    thread = {"correlation_id": str(uuid4()), "turn_id": 2}
    approval = {"request_id": "r1", "target_user_id": "bob", "expires_at": "2099-01-01T00:00:00+01:00"}
    acme.append(
        wire("WORK_ORDER_CREATED", "a", payload={"fields": {"place": "Oslo"}, "requester_user_id": "alice"}),
        wire("FIELD_PROMPTED", "a", payload={"field_key": "date", "prompt_dedupe_key": "date#1"}),
        wire("FIELD_SET", "a", payload={"field_key": "date", "value": None}),
        wire("FIELD_CONFLICT_DETECTED", "a", payload={"field_key": "place"}),
        wire("FIELD_CONFLICT_RESOLVED", "a", payload={"field_key": "place", "value": "Bergen"}),
        wire("FIELD_CONFLICT_DETECTED", "a", payload={"field_key": "date"}),
        wire("STATUS_CHANGED", "a", payload={"previous_status": "CLARIFY"}, **thread),
        wire("EXTERNAL_APPROVAL_REQUESTED", "a", payload=approval, **thread),
        wire("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "a", payload={"request_id": "r1"}, **thread),
        wire("STEP_FAILED", "a", work_order_status="CONFIRM", step_id="s1", step_input_hash="h", **thread),
    )
    for name in "bcd":
        acme.append(wire("WORK_ORDER_CREATED", name), wire("STEP_STARTED", name))
    acme.append(wire("WORK_ORDER_CANCELED", "d"))
    rival.append(wire("WORK_ORDER_CREATED", "theirs"))
    assert rival.damage(f"UPDATE {CURRENT} SET turn_id = 77 WHERE tenant_id = 'rival'") == 1


def damages(right: dict[str, dict[str, Any]]) -> Iterator[tuple[list[str], set[str]]]:
    """Yield ways to damage the projection, and the orders that are wrong then."""
    mine = "tenant_id = 'acme' AND work_order_id"
    for column in right["a"]:
        if column not in {"tenant_id", "work_order_id", "correlation_id"}:
            # Whatever the row of another order has there, or else something that no order has.
            other = f"(SELECT {column} FROM {CURRENT} WHERE {mine} = 'd')"
            if right["a"][column] != right["d"][column]:
                yield [f"UPDATE {CURRENT} SET {column} = {other} WHERE {mine} = 'a'"], {"a"}
    yield [f"UPDATE {CURRENT} SET fields_json = fields_json - 'place' WHERE {mine} = 'a'"], {"a"}
    yield [f"UPDATE {CURRENT} SET correlation_id = '{uuid4()}' WHERE {mine} = 'b'"], {"b"}
    yield [f"UPDATE {CURRENT} SET lease_owner_id = 'nobody' WHERE {mine} = 'c'"], {"c"}
    yield [f"DELETE FROM {CURRENT} WHERE {mine} = 'b'"], {"b"}
    yield [f"DELETE FROM {CURRENT} WHERE tenant_id = 'acme'"], {"a", "b", "c", "d"}
    yield (
        [
            f"UPDATE {CURRENT} SET correlation_id = '{uuid4()}' WHERE {mine} = 'b'",
            f"UPDATE {CURRENT} SET correlation_id = '{correlation_of('b')}' WHERE {mine} = 'c'",
            f"UPDATE {CURRENT} SET correlation_id = '{correlation_of('c')}' WHERE {mine} = 'b'",
        ],
        {"b", "c"},
    )


def check_every_prefix(acme: Tenant) -> None:
    """The fold of a prefix is the projection as it was when that was all: of the whole, the one it is."""
    for event in acme.ledger():
        was = acme.as_of(event["work_order_id"], event_id=event["work_order_event_id"])
        assert was is not None
        for name in (
            "tenant_id",
            "work_order_id",
            "correlation_id",
            "turn_id",
            "work_order_status",
            "step_id",
        ):
            assert was[name] == event[name]
        assert (was["last_seq"], was["last_event_id"]) == (
            event["work_order_seq"],
            event["work_order_event_id"],
        )
        assert was == acme.as_of(event["work_order_id"], seq=event["work_order_seq"])
        if event["work_order_seq"] == acme.projection(event["work_order_id"])["last_seq"]:
            assert was == acme.projection(event["work_order_id"])


def check_appends_go_on_meanwhile(acme: Tenant, database: Database) -> None:
    def append_to(name: str) -> list[int]:
        with connect(database.app_url, autocommit=True) as conn:
            return [append(conn, "acme", wire("STEP_STARTED", name))[0].work_order_seq for _ in range(40)]

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(append_to, name) for name in "bc"]
        while not all(writer.done() for writer in writers):
            acme.rebuild(limit=1)
    assert [writer.result() for writer in writers] == [list(range(3, 43))] * 2
    assert [acme.projection(name)["last_seq"] for name in "bc"] == [42, 42]
    assert acme.verify() == {}
