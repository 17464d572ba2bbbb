"""The command line as a person and a script meet it (SPEC.md section 15)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from selene_core import LeaseRepository, StepAttemptRepository, append_events, tenant_scope
from tests.calls import Tenant
from tests.data import synthetic_events, write_lines
from tests.factories import created, event
from tests.raw import connect
from tests.servers import Database
from tests.workers import LIMITS, wait_past

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(database: Database) -> Run:
    """Run selene-core with the application's URL of the test database."""

    def call(*arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "SELENE_DATABASE_URL"}
        environment["SELENE_DATABASE_URL"] = url or database.app_url.render_as_string(hide_password=False)
        return subprocess.run(
            [sys.executable, "-m", "selene_core", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


@pytest.fixture
def order(engine: Engine) -> str:
    """Append a small history and return its work order."""
    first = created("wo_cli", payload={"fields": {"city": "Zürich"}, "requester_user_id": "alice"})
    append_events(
        engine,
        "acme",
        [
            first,
            event("FIELD_SET", "wo_cli", payload={"field_key": "note", "value": "a\x1b[31mred " + "x" * 200}),
            event("STATUS_CHANGED", "wo_cli"),
        ],
    )
    return "wo_cli"


def test_show__reads_well_in_80_columns(run: Run, order: str) -> None:
    result = run("show", "acme", order)
    assert result.returncode == 0
    assert "wo_cli  CONFIRM" in result.stdout
    assert 'city = "Zürich"' in result.stdout
    assert "WORK_ORDER_CREATED → DRAFT" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


def test_show__json_is_whole(run: Run, order: str) -> None:
    result = run("show", "acme", order, "--json")
    shown = json.loads(result.stdout)
    assert shown["state"]["fields_json"]["city"] == "Zürich"
    assert [event["work_order_seq"] for event in shown["events"]] == [1, 2, 3]


def test_show__lease_and_attempts(run: Run, order: str, engine: Engine, database: Database) -> None:
    with tenant_scope(engine, "acme") as conn:
        lease = LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=3_600_000)
        attempt = StepAttemptRepository(conn).start(
            order, "book", **LIMITS, idempotency_key="s", lease_token=lease.token
        )
        decision = StepAttemptRepository(conn).finish(
            attempt.step_attempt_id, outcome="FAILED", reason_code=7, retryable=True, lease_token=lease.token
        )
    assert lease.token is not None
    assert decision.next_due_at is not None
    shown = run("show", "acme", order).stdout
    assert f"lease       worker-1 until {lease.lease_expires_at:%Y-%m-%d %H:%M:%SZ}, held" in shown
    assert "attempt     book 1 of 3: FAILED" in shown
    assert f"retry     from {decision.next_due_at:%Y-%m-%d %H:%M:%SZ}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    as_json = run("show", "acme", order, "--json").stdout
    found = json.loads(as_json)
    assert (found["lease"]["fence"], found["lease"]["token"]) == (lease.fence, None)
    assert [one["attempt_status"] for one in found["attempts"]] == ["FAILED"]
    assert lease.token not in shown + as_json
    with tenant_scope(engine, "acme") as conn:
        lease = LeaseRepository(conn).renew(order, lease.token, ttl_ms=1)
    with closing(connect(database.admin_url, autocommit=True)) as admin:
        wait_past(Tenant("acme", admin, admin), lease.lease_expires_at)
    assert ", expired" in run("show", "acme", order).stdout


@pytest.mark.parametrize("tenant", ["acme", "globex"])
def test_show__unknown_order_is_one_line_and_status_1(run: Run, order: str, tenant: str) -> None:
    result = run("show", tenant, "wo_none" if tenant == "acme" else order)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "WorkOrderNotFound" in result.stderr


def test_verify_and_rebuild__name_and_mend(run: Run, order: str, admin_engine: Engine) -> None:
    assert run("verify", "acme").returncode == 0
    with admin_engine.begin() as conn:
        conn.execute(text("UPDATE os_core.work_orders_current SET turn_id = 77"))
    drifted = run("verify", "acme")
    assert drifted.returncode == 1
    assert f"{order}: the projection row differs in turn_id" in drifted.stdout
    as_json = run("verify", "acme", "--json")
    assert as_json.returncode == 1
    assert [found["work_order_id"] for found in json.loads(as_json.stdout)["drifted"]] == [order]

    rebuilt = run("rebuild", "acme", "--json")
    assert json.loads(rebuilt.stdout) == {"work_orders": 1, "events": 3, "changed": 1}
    assert run("verify", "acme", "--work-order", order).returncode == 0
    assert run("rebuild", "acme", "--work-order", order).stdout.endswith("0 rows changed\n")


def test_import__says_what_it_did(run: Run, tmp_path: Path) -> None:
    events = synthetic_events(20)
    path = write_lines(tmp_path / "events.jsonl.gz", events)
    assert run("import", str(path)).stdout == "100 lines: 100 appended, 0 replays, 0 refused\n"
    again = json.loads(run("import", str(path), "--json").stdout)
    assert again == {"lines": 100, "appended": 0, "replayed": 100, "refused": []}

    broken = write_lines(tmp_path / "broken.jsonl", [{"tenant_id": "t1"}])
    result = run("import", str(broken))
    assert result.returncode == 1
    assert result.stderr.startswith("line 1: OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED: ")


def test_upgrade__says_from_where_to_where(run: Run, empty_database: Database) -> None:
    url = empty_database.admin_url.render_as_string(hide_password=False)
    first = run("upgrade", url=url)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Upgraded from an empty database to revision ")
    second = json.loads(run("upgrade", "--json", url=url).stdout)
    assert second["from"] == second["to"]


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (["verify", "not a tenant"], None),
        (["verify", "acme"], "postgresql://nobody@127.0.0.1:1/none"),
        (["verify"], None),
        (["unknown"], None),
        (["verify", "acme"], "not a url"),
        (["upgrade"], "postgresql://nobody@127.0.0.1:1/none"),
        (["import", "/no/such/file.jsonl"], None),
    ],
)
def test_errors__are_one_line_without_traceback(run: Run, arguments: list[str], url: str | None) -> None:
    result = run(*arguments, url=url)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("selene-core: ")
    assert result.stderr.count("\n") == 1


def test_import__file_that_is_no_gzip_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl.gz"
    path.write_bytes(b"{}\n")
    result = run("import", str(path))
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1


def test_demo__everything_holds() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "selene_core", "demo"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("Everything held.\n")
    assert "NOT REFUSED" not in result.stdout
