"""What a hostile or unlucky session has tried on the functions: each of these broke something once."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from selene_core import WorkOrderRepository, append_events, rebuild_tenant, tenant_scope
from tests.support.commands import selene_core
from tests.support.factories import created, event, wire
from tests.support.raw import connect
from tests.support.servers import Database

APPEND = "SELECT * FROM os_core.append_work_order_events(%s, %s::jsonb)"
EXPIRY = "2030-01-01T00:00:00Z"


def append(conn: psycopg.Connection[Any], *events: dict[str, Any]) -> list[Any]:
    return conn.execute(APPEND, ["acme", json.dumps(events)]).fetchall()


def test_session__standard_conforming_strings_change_nothing(database: Database, engine: Engine) -> None:
    # PL/pgSQL parses a body under the session's setting, which decides what a plain backslash means.
    ask = {"request_id": "ask", "target_user_id": "bob", "expires_at": EXPIRY}
    with connect(database.app_url, autocommit=True) as conn:
        conn.execute("SET escape_string_warning = off")
        conn.execute("SET standard_conforming_strings = off")
        append(
            conn,
            wire("WORK_ORDER_CREATED", "wo", occurred_at=EXPIRY, idempotency_key="kéy one"),
            wire("EXTERNAL_APPROVAL_REQUESTED", "wo", payload=ask),
        )
        with pytest.raises(psycopg.Error) as caught:
            append(conn, wire("FIELD_SET", "wo", idempotency_key="\u00a0k"))
        assert caught.value.sqlstate == "SL001"
        assert conn.execute("SELECT count(*) FROM os_core.verify_work_orders('acme')").fetchone() == (0,)
        rebuilt = conn.execute("SELECT changed FROM os_core.rebuild_work_order('acme', 'wo')").fetchone()
        assert rebuilt == (0,)
    with tenant_scope(engine, "acme") as scoped:
        orders = WorkOrderRepository(scoped)
        order = orders.get("wo")
        assert order is not None
        assert order.external_approval_expires_at is not None
        assert orders.verify() == []


def test_functions__have_no_backslash_in_a_plain_literal(admin_engine: Engine) -> None:
    with admin_engine.connect() as conn:
        bodies = conn.execute(
            text("SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'os_core'::regnamespace")
        ).all()
    assert len(bodies) > 30
    for name, body in bodies:
        assert "\\" not in re.sub(r"\bE'(?:[^']|'')*'", "", body), name


@pytest.mark.parametrize("value", [[], [None], ["k"], {}, {"a": 1}, 5, True])
@pytest.mark.parametrize(
    "column", ["idempotency_key", "step_id", "step_input_hash", "occurred_at", "lease_token"]
)
def test_event__text_columns_take_no_other_json(database: Database, column: str, value: object) -> None:
    with connect(database.app_url, autocommit=True) as conn:
        with pytest.raises(psycopg.Error) as caught:
            append(conn, {**wire("WORK_ORDER_CREATED", "wo"), column: value})
        assert caught.value.sqlstate == "SL001"
        assert json.loads(caught.value.diag.message_detail or "")["field"] == column


def test_sequence__set_back_is_refused_and_named(
    database: Database, engine: Engine, admin_engine: Engine
) -> None:
    append_events(engine, "acme", [created("old"), event("FIELD_SET", "old"), event("FIELD_SET", "old")])
    set_back = text("SELECT setval('os_core.work_order_ledger_work_order_event_id_seq', 1)")
    for events in (
        [event("FIELD_SET", "old")],
        [created("new")],
        [event("FIELD_SET", "old"), created("new")],
        [created("new"), created("newer")],
    ):
        with admin_engine.begin() as conn:
            conn.execute(set_back)
        with pytest.raises(Exception, match="the sequence of work_order_event_id is behind") as caught:
            append_events(engine, "acme", events)
        cause = getattr(caught.value, "orig", None)
        assert isinstance(cause, psycopg.Error)
        assert cause.sqlstate == "55000"
        hint = cause.diag.message_hint or ""
    with admin_engine.begin() as conn:
        mend = hint.removeprefix("Let a superuser run: ")
        conn.exec_driver_sql(mend)
    assert append_events(engine, "acme", [event("FIELD_SET", "old")])[0].work_order_seq == 4
    with tenant_scope(engine, "acme") as scoped:
        assert WorkOrderRepository(scoped).verify() == []


def test_sequence__set_back_gives_an_older_order_no_id_that_is_taken(
    database: Database, engine: Engine, admin_engine: Engine
) -> None:
    """Its own ids are lower, so only the key notices."""
    append_events(engine, "acme", [created("older")])
    append_events(engine, "globex", [created("newer"), event("FIELD_SET", "newer")])
    with admin_engine.begin() as conn:
        conn.execute(text("SELECT setval('os_core.work_order_ledger_work_order_event_id_seq', 1)"))
    with pytest.raises(IntegrityError, match="pk_work_order_ledger"):
        append_events(engine, "acme", [event("FIELD_SET", "older")])
    with tenant_scope(engine, "acme") as scoped:
        assert [each.work_order_seq for each in WorkOrderRepository(scoped).events("older")] == [1]
        assert WorkOrderRepository(scoped).verify() == []


def test_rebuild__goes_on_past_a_row_that_stands_under_another_tenant(
    engine: Engine, admin_engine: Engine
) -> None:
    for order in ("wo_1", "wo_2", "wo_3"):
        append_events(engine, "acme", [created(order)])
    with admin_engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(
            text("UPDATE os_core.work_orders_current SET tenant_id = 'globex' WHERE work_order_id = 'wo_1'")
        )
        conn.execute(text("UPDATE os_core.work_orders_current SET turn_id = 9 WHERE work_order_id = 'wo_3'"))
    assert rebuild_tenant(engine, "acme").changed == 1
    with tenant_scope(engine, "acme") as scoped:
        assert [order.work_order_id for order in WorkOrderRepository(scoped).verify()] == ["wo_1"]
    assert rebuild_tenant(engine, "globex").changed == 1
    assert rebuild_tenant(engine, "acme").changed == 1
    with tenant_scope(engine, "acme") as scoped:
        assert WorkOrderRepository(scoped).verify() == []


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_import__damaged_gzip_is_the_line_where_it_begins(
    database: Database, tmp_path: Path, damage: str
) -> None:
    lines = [{"tenant_id": "acme", **wire("WORK_ORDER_CREATED", f"wo_{n}")} for n in range(200)]
    whole = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else whole[:40] + b"\0" * 5 + whole[45:])
    url = database.app_url.render_as_string(hide_password=False)
    result = selene_core("import", str(path), "--url", url)
    assert result.returncode == 1
    assert re.fullmatch(
        r"line [0-9]+: OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED: file: is damaged or cut off from here on"
        r" \(.+\)\n",
        result.stderr,
    )


def test_import__over_long_line_is_refused_without_being_held(database: Database, tmp_path: Path) -> None:
    good = json.dumps({"tenant_id": "acme", **wire("WORK_ORDER_CREATED", "wo")}).encode()
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"tenant_id": "' + b"a" * 3_000_000 + b'"}\n' + good + b"\n")
    url = database.app_url.render_as_string(hide_password=False)
    result = selene_core("import", str(path), "--json", "--url", url)
    report = json.loads(result.stdout)
    assert (report["lines"], report["appended"]) == (2, 1)
    assert [refused["line"] for refused in report["refused"]] == [1]
