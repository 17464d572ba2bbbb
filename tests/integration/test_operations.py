"""The commands for whoever operates, and what an order was like (contract §15)."""

import gzip
import json
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from selene_core import (
    LeaseRepository,
    StepAttemptRepository,
    WorkOrder,
    WorkOrderRepository,
    append_events,
    tenant_scope,
)
from selene_core.cli.importing import MOST_REHEARSED
from tests.support.calls import Tenant
from tests.support.commands import selene_core
from tests.support.factories import created, event, new_id, wire
from tests.support.proxy import proxy_to
from tests.support.races import wait_until
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.workers import LIMITS

Run = Callable[..., subprocess.CompletedProcess[str]]
TOKEN = "token-hunter2-" + "x" * 32
HOSTILE = "</text><script>alert(1)</script>&\x1b[31m\u202e\"' " + "東京" * 80
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(database: Database) -> Run:
    """Run selene-core with the application's URL of the test database."""

    def call(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        address = database.app_url.render_as_string(hide_password=False)
        return selene_core(*arguments, **{"SELENE_DATABASE_URL": address, **more})

    return call


@pytest.fixture
def order(engine: sa.Engine) -> str:
    """Append a history of five events: a lease, and a hostile value."""
    append_events(
        engine,
        "acme",
        [
            created(order := new_id(), payload={"fields": {"city": "Bern"}, "requester_user_id": "alice"}),
            event("FIELD_SET", order, payload={"field_key": "city", "value": "Zug"}, idempotency_key="k1"),
        ],
    )
    with tenant_scope(engine, "acme") as conn:
        LeaseRepository(conn).acquire(order, "worker-1", ttl_ms=3_600_000, token=TOKEN)
    append_events(
        engine,
        "acme",
        [
            event("FIELD_SET", order, payload={"field_key": "note", "value": HOSTILE}),
            event("STATUS_CHANGED", order, work_order_status="EXECUTING"),
        ],
    )
    return order


def told(result: subprocess.CompletedProcess[str]) -> Any:
    """Return the one JSON value that a command told of a success."""
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def refused(result: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """Return the one line in which a command told of a failure."""
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def state(engine: sa.Engine, order: str, tenant: str = "acme") -> WorkOrder:
    with tenant_scope(engine, tenant) as conn:
        found = WorkOrderRepository(conn).get(order)
    assert found is not None
    return found


def pass_by(engine: sa.Engine, moment: datetime) -> None:
    """Wait until a time is past, by the database's clock."""
    with engine.connect() as conn:
        past = sa.text("SELECT clock_timestamp() > :moment")
        wait_until(lambda: conn.scalar(past, {"moment": moment}), f"{moment} is past")


# --- show, as it was


def test_show__as_it_was_after_an_event(run: Run, order: str) -> None:
    shown = told(run("show", "acme", order, "--seq", "2", "--json"))
    assert shown["state"]["fields_json"] == {"city": "Zug"}
    assert [each["work_order_seq"] for each in shown["events"]] == [1, 2]
    assert shown.keys() == {"state", "events"}  # lease and attempts are known as they are now
    text = run("show", "acme", order, "--seq", "1").stdout
    assert 'city = "Bern"' in text
    assert "FIELD_SET" not in text
    assert "worker-1" not in text


def test_show__as_it_was_at_a_time(run: Run, order: str, engine: sa.Engine) -> None:
    with tenant_scope(engine, "acme") as conn:
        times = [each.created_at for each in WorkOrderRepository(conn).events(order)]
    there = times[2].astimezone(tz=timezone(timedelta(hours=5, minutes=30))).isoformat()
    assert there.endswith("+05:30")
    shown = told(run("show", "acme", order, "--at", there, "--json"))
    assert shown["state"]["last_seq"] == len(shown["events"]) == 3
    before = (times[0] - timedelta(microseconds=1)).isoformat()
    assert "did not exist then" in refused(run("show", "acme", order, "--at", before))
    later = told(run("show", "acme", order, "--at", "9999-12-31T00:00:00Z", "--json"))
    assert later["state"]["last_seq"] == 5


@pytest.mark.parametrize("time", ["now", "2027-03-14", "2027-03-14T09:00:00", "infinity", "", "1e9"])
def test_show__a_time_without_an_offset_is_wrong_usage(run: Run, order: str, time: str) -> None:
    assert "RFC 3339" in refused(run("show", "acme", order, "--at", time), 2)


def test_show__an_event_that_is_not_there(run: Run, order: str) -> None:
    assert "has no event 6: its last is 5" in refused(run("show", "acme", order, "--seq", "6"))
    assert "does not exist" in refused(run("show", "globex", order, "--seq", "1"))
    refused(run("show", "acme", order, "--seq", "0"), 2)


@pytest.mark.parametrize(
    "options",
    [
        "--seq 1 --at 2027-03-14T09:00:00Z",
        "--seq 1 --conversation",
        "--svg - --conversation",
        "--svg - --json",
    ],
)
def test_show__options_that_exclude_each_other(run: Run, order: str, options: str) -> None:
    result = run("show", "acme", order, *options.split())
    assert result.returncode == 2
    assert "choose one of" in result.stderr


# --- show, as a picture


def test_svg__is_a_picture_of_the_time_line(run: Run, order: str, tmp_path: Path) -> None:
    file = tmp_path / "order.svg"
    result = run("show", "acme", order, "--svg", str(file))
    assert (result.returncode, result.stdout) == (0, f"{file}: 5 events drawn\n")
    root = ET.parse(file).getroot()  # noqa: S314 - ours
    written = [each.text or "" for each in root.iter(f"{SVG}text")]
    assert order in written
    assert {"Work order created", "Lease acquired", "Status changed"} <= {*written}
    assert 'city = "Zug"' in written
    assert root.tag == f"{SVG}svg"
    kinds = {each.tag.removeprefix(SVG) for each in root.iter()}
    assert kinds == {"svg", "title", "desc", "style", "rect", "text", "path", "circle"}
    assert not any("\x1b" in text or "\u202e" in text for text in written)
    assert TOKEN not in file.read_text("utf-8")


def test_svg__of_an_earlier_state_says_so(run: Run, order: str) -> None:
    result = run("show", "acme", order, "--seq", "2", "--svg", "-")
    written = [each.text for each in ET.fromstring(result.stdout).iter(f"{SVG}text")]  # noqa: S314 - ours
    assert "As of event 2." in written
    assert "Lease acquired" not in written


def test_svg__the_longest_ids_stay_in_the_frame(run: Run, engine: sa.Engine) -> None:
    order, user, tenant = "w" * 128, "u" * 128, "t" * 64
    append_events(
        engine, tenant, [created(order, payload={"fields": {"k" * 64: HOSTILE}, "requester_user_id": user})]
    )
    result = run("show", tenant, order, "--svg", "-")
    root = ET.fromstring(result.stdout)  # noqa: S314 - ours
    for each in root.iter(f"{SVG}text"):
        wide = sum(2 if ord(character) > 0x2E80 else 1 for character in each.text or "")
        begin = float(each.get("x") or 0)
        if each.get("text-anchor") != "middle":
            assert begin + wide * float(each.get("font-size") or 0) * 0.602 <= 860
    for each in root.iter(f"{SVG}rect"):
        assert float(each.get("x") or 0) + float(each.get("width") or 0) <= 860


def test_svg__nothing_is_written_for_an_unknown_order(run: Run, order: str, tmp_path: Path) -> None:
    file = tmp_path / "order.svg"
    refused(run("show", "globex", order, "--svg", str(file)))
    refused(run("show", "acme", order, "--svg", str(tmp_path)), 2)
    refused(run("show", "acme", order, "--svg", str(tmp_path / "no" / "such")))
    assert not file.exists()


# --- list


def test_list__by_status_and_page_by_page(run: Run, order: str, engine: sa.Engine) -> None:
    ids = [new_id() for _ in range(4)]
    append_events(engine, "acme", [created(each) for each in ids])
    append_events(engine, "globex", [created(new_id())])
    assert told(run("cancel", "acme", ids[0], "--reason", "7", "--json"))

    def listed(*options: str) -> list[str]:
        return [
            each["work_order_id"] for each in told(run("list", "acme", *options, "--json"))["work_orders"]
        ]

    assert {*listed()} == {order, *ids}
    assert listed("--oldest-first")[0] == order
    assert {*listed("--status", "DRAFT")} == {*ids[1:]}
    assert {*listed("--status", "canceled", "--status", "EXECUTING")} == {order, ids[0]}
    assert listed("--requester", "alice", "--owner", "worker-1") == [order]
    assert listed("--owner", "worker-2") == []
    whole, pages = listed(), listed("--limit", "2")
    assert told(run("list", "acme", "--limit", "2", "--json"))["more"] is True
    while page := listed("--limit", "2", "--after", pages[-1]):
        pages += page
    assert pages == whole


def test_list__reads_well(run: Run, order: str) -> None:
    text = run("list", "acme").stdout
    assert f"EXECUTING  {order}" in text
    assert "requester   alice" in text
    assert "lease       worker-1" in text
    assert max(map(len, text.splitlines())) <= 80
    assert run("list", "globex").stdout == "There are no such work orders.\n"
    assert "does not exist" in refused(run("list", "globex", "--after", order))
    assert run("list", "acme", "--status", "GONE").returncode == 2


# --- cancel


def test_cancel__is_one_event_however_often(run: Run, order: str, engine: sa.Engine) -> None:
    first = told(run("cancel", "acme", order, "--reason", "7", "--note", "dürfte", "--json"))
    assert (first["work_order_seq"], first["replayed"]) == (6, False)
    assert state(engine, order).work_order_status == "CANCELED"
    again = run("cancel", "acme", order, "--reason", "7", "--note", "dürfte")
    assert (again.returncode, again.stdout) == (
        0,
        f"{order} was canceled before: event {first['work_order_event_id']}, seq 6\n",
    )
    assert "OS_WORK_ORDER_IDEMPOTENCY_CONFLICT" in refused(run("cancel", "acme", order, "--reason", "8"))
    other = run("cancel", "acme", order, "--reason", "7", "--key", "another")
    assert "OS_WORK_ORDER_CANCEL_INVALID_STATE" in refused(other)
    assert state(engine, order).last_seq == 6


def test_cancel__of_what_is_not_there(run: Run, order: str, engine: sa.Engine) -> None:
    assert "OS_WORK_ORDER_NOT_FOUND" in refused(run("cancel", "globex", order, "--reason", "7"))
    refused(run("cancel", "acme", order), 2)
    refused(run("cancel", "acme", order, "--reason", "0"), 2)
    refused(run("cancel", "acme", order, "--reason", str(1 << 32)), 2)
    assert state(engine, order).last_seq == 5


# --- leases and retries


def test_leases__are_those_that_were_not_given_back(
    run: Run, order: str, engine: sa.Engine, database: Database
) -> None:
    append_events(engine, "acme", [created(dead := new_id()), created(back := new_id())])
    with tenant_scope(engine, "acme") as conn:
        short = LeaseRepository(conn).acquire(dead, "worker-2", ttl_ms=1)
        token = LeaseRepository(conn).acquire(back, "worker-3", ttl_ms=60_000).token
        LeaseRepository(conn).release(back, token)
    pass_by(engine, short.lease_expires_at)
    shown = told(run("leases", "acme", "--json"))
    assert shown["more"] is False
    assert [(each["work_order_id"], each["lease_owner_id"], each["held"]) for each in shown["leases"]] == [
        (dead, "worker-2", False),
        (order, "worker-1", True),
    ]
    assert not any("token" in name for each in shown["leases"] for name in each)
    text = run("leases", "acme")
    assert f"expired  {dead}" in text.stdout
    assert f"held     {order}" in text.stdout
    assert TOKEN not in text.stdout + str(shown)
    first = told(run("leases", "acme", "--limit", "1", "--json"))
    assert (len(first["leases"]), first["more"]) == (1, True)
    assert run("leases", "globex").stdout == "Nobody holds a lease.\n"


def test_retries__are_those_that_are_due(run: Run, order: str, engine: sa.Engine, database: Database) -> None:
    limits = {**LIMITS, "retry_backoff_ms": 1}
    with tenant_scope(engine, "acme") as conn:
        attempts = StepAttemptRepository(conn)
        first = attempts.start(order, "book", **limits, idempotency_key="b", lease_token=TOKEN)
        later = attempts.start(order, "pay", **LIMITS, idempotency_key="p", lease_token=TOKEN)
        due = [
            attempts.finish(
                each.step_attempt_id, outcome="FAILED", reason_code=9, retryable=True, lease_token=TOKEN
            ).next_due_at
            for each in (first, later)
        ]
    assert due[0] is not None
    pass_by(engine, due[0])
    shown = told(run("retries", "acme", "--json"))
    assert [(each["work_order_id"], each["step_id"]) for each in shown["retries"]] == [(order, "book")]
    assert "book 1 of 3: FAILED" in run("retries", "acme").stdout
    assert run("retries", "globex").stdout == "No retry is due.\n"
    assert told(run("stats", "acme", "--json"))["due_retries"] == 1


# --- stats


def test_stats__count_one_tenant(run: Run, order: str, engine: sa.Engine) -> None:
    old, young = new_id(), new_id()
    append_events(engine, "acme", [created(old), created(young)])
    append_events(engine, "acme", [event("FIELD_SET", young, payload={"field_key": "a", "value": 1})])
    append_events(engine, "globex", [created(new_id())])
    shown = told(run("stats", "acme", "--json"))
    assert shown["work_orders"] == {
        "DRAFT": 1,
        "CLARIFY": 1,
        "CONFIRM": 0,
        "EXECUTING": 1,
        "DONE": 0,
        "REFUSED": 0,
        "FAILED": 0,
        "CANCELED": 0,
    }
    assert shown["oldest_pending"]["work_order_id"] == old
    assert shown["oldest_pending"]["seconds"] >= 0
    assert (shown["active_leases"], shown["expired_leases"], shown["due_retries"]) == (1, 0, 0)
    text = run("stats", "acme").stdout
    assert "           1  EXECUTING\n" in text
    assert old in text


def test_stats__of_a_tenant_without_work_orders_warn(run: Run, order: str) -> None:
    result = run("stats", "acmee", "--json")
    shown = json.loads(result.stdout)
    assert (result.returncode, shown["oldest_pending"]) == (0, None)
    assert shown["warning"] == "tenant acmee has 0 work orders: is it spelled right?"
    assert shown["warning"] in result.stderr


# --- export and import


def folded(engine: sa.Engine, order: str, tenant: str = "acme") -> dict[str, Any]:
    """Return what an import brings over: all but times, numbers, and the lease."""
    found = state(engine, order, tenant)
    return {
        name: getattr(found, name)
        for name in ("correlation_id", "turn_id", "work_order_status", "fields_json", "requester_user_id")
    }


@pytest.mark.parametrize("name", ["-", "events.jsonl", "events.jsonl.gz"])
def test_export__is_what_import_reads(
    run: Run, order: str, engine: sa.Engine, server: Any, template_database: str, tmp_path: Path, name: str
) -> None:
    append_events(engine, "globex", [created(new_id())])
    file = tmp_path / name
    result = run("export", "acme", "-" if name == "-" else str(file), "--keys")
    assert result.returncode == 0
    assert "1 LEASE_* event left out" in result.stderr
    raw = result.stdout.encode() if name == "-" else file.read_bytes()
    lines = (gzip.decompress(raw) if name.endswith("gz") else raw).decode().splitlines()
    assert len(lines) == 4
    assert {json.loads(line)["tenant_id"] for line in lines} == {"acme"}
    assert TOKEN not in "".join(lines)
    with server.new_database("other", template_database) as other:
        address = other.app_url.render_as_string(hide_password=False)
        for expected in ("4 appended, 0 replays", "0 appended, 4 replays"):
            imported = run("import", "-", answer=raw, SELENE_DATABASE_URL=address)
            assert (imported.returncode, imported.stderr) == (0, "")
            assert f"4 lines: {expected}, 0 refused" in imported.stdout
        assert folded(other.engine(), order) == folded(engine, order)
        assert state(other.engine(), order).last_seq == 4


def test_export__one_work_order_and_exact_numbers(run: Run, engine: sa.Engine, database: Database) -> None:
    with connect(database.app_url, autocommit=True) as conn:
        tenant = Tenant("acme", conn, conn)
        order = new_id()
        there = "2027-03-14T09:00:00.123456+05:30"
        exact = {"n": 12345678901234.123456789012345, "list": [1.0, None, "a\nb\u2028😀"]}
        tenant.append(
            {**wire("WORK_ORDER_CREATED", order, payload={"fields": exact}), "occurred_at": there},
            wire("WORK_ORDER_CREATED", new_id()),
        )
    [line] = run("export", "acme", "--work-order", order).stdout.splitlines()
    assert json.loads(line)["payload"]["fields"] == exact
    assert json.loads(line)["occurred_at"] == "2027-03-14T03:30:00.123456Z"
    assert run("export", "globex", "--work-order", order).stdout == ""


def test_export__says_in_a_dry_run_what_its_own_database_has(run: Run, order: str, engine: sa.Engine) -> None:
    """Events with a key of their own are there already; of the others nobody can tell."""
    lines = run("export", "acme").stdout
    result = json.loads(run("import", "-", "--dry-run", "--json", answer=lines).stdout)
    assert (result["replayed"], result["appended"], result["dry_run"]) == (1, 2, True)
    assert [(each["line"], each["code"]) for each in result["refused"]] == [
        (1, "OS_WORK_ORDER_INVALID_TRANSITION")
    ]
    assert state(engine, order).last_seq == 5


def test_export__a_second_notice_is_judged_by_the_time_of_the_import(
    run: Run, engine: sa.Engine, server: Any, template_database: str
) -> None:
    """As the documents say: what depends on created_at is refused, with its line, and the rest goes on."""

    def noticed_twice(within: timedelta) -> bool:
        soon = datetime.now(UTC) + within
        request = {"request_id": "r", "target_user_id": "bob", "expires_at": soon.isoformat()}
        append_events(engine, "acme", [created(order := new_id())])
        append_events(engine, "acme", [event("EXTERNAL_APPROVAL_REQUESTED", order, payload=request)])
        with tenant_scope(engine, "acme") as conn:
            WorkOrderRepository(conn).notify_wait(order)
        pass_by(engine, soon)
        with tenant_scope(engine, "acme") as conn:
            return WorkOrderRepository(conn).notify_wait(order)

    # A slow server may come to the first notice after the expiry only; then there is no second one.
    orders = next(
        tries for tries, seconds in enumerate((0.3, 1, 3, 9, 27)) if noticed_twice(timedelta(0, seconds))
    )
    lines = run("export", "acme").stdout
    with server.new_database("other", template_database) as other:
        address = other.app_url.render_as_string(hide_password=False)
        imported = run("import", "-", answer=lines, SELENE_DATABASE_URL=address)
    assert (imported.returncode, imported.stderr.count("\n")) == (1, 1)
    last = len(lines.splitlines())
    assert last == 4 + 3 * orders
    assert imported.stderr.startswith(f"line {last}: OS_WORK_ORDER_PROMPT_SUPPRESSED")


def test_export__json_needs_a_file(run: Run, order: str, tmp_path: Path) -> None:
    assert run("export", "acme", "--json").returncode == 2
    result = run("export", "acme", str(tmp_path / "out.jsonl"), "--json")
    assert json.loads(result.stdout) == {"events": 4, "left_out": 1}


def test_export__that_fails_leaves_the_file_of_before(run: Run, order: str, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("before")
    refused(run("export", "a b", str(file)))
    refused(run("export", "acme", str(file), "--url", "postgresql://nobody@127.0.0.1:1/none"), 3)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("out.jsonl", "before")]
    assert run("export", "acme", "/dev/null").returncode == 0
    assert Path("/dev/null").is_char_device()


def test_export__of_a_tenant_without_work_orders_warns(run: Run, order: str) -> None:
    result = run("export", "acmee")
    assert (result.returncode, result.stdout) == (0, "")
    assert "0 work orders" in result.stderr
    assert "OS_WORK_ORDER_CONTRACT" in refused(run("export", "a b"))


def test_dry_run__says_what_would_be_and_leaves_nothing(run: Run, order: str, engine: sa.Engine) -> None:
    lines = [
        {"tenant_id": "acme", **wire("WORK_ORDER_CREATED", first := new_id())},
        {"tenant_id": "globex", **wire("WORK_ORDER_CREATED", new_id())},
        {"tenant_id": "acme", **wire("FIELD_SET", first, payload={"field_key": "a", "value": 1})},
        {"tenant_id": "acme", **wire("FIELD_SET", new_id(), payload={"field_key": "a", "value": 1})},
        {"tenant_id": "acme", **wire("FIELD_SET", first, payload={"field_key": "b", "value": 1})},
        {"tenant_id": "acme"},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)

    def everything() -> list[Any]:
        with tenant_scope(engine, "acme") as conn:
            return [*conn.execute(sa.text("SELECT * FROM os_core.work_order_ledger"))]

    before = everything()
    rehearsed = run("import", "-", "--dry-run", "--json", answer=text)
    assert everything() == before
    real = run("import", "-", "--json", answer=text)
    assert rehearsed.returncode == real.returncode == 1
    assert {**json.loads(real.stdout), "dry_run": True} == json.loads(rehearsed.stdout)
    assert [each["line"] for each in json.loads(real.stdout)["refused"]] == [4, 6]
    assert run("import", "-", "--dry-run", answer=text).stdout.startswith("Dry run: 6 lines: ")


def test_dry_run__takes_so_many_tenants(run: Run, order: str) -> None:
    lines = [
        json.dumps({"tenant_id": f"t{number}", **wire("WORK_ORDER_CREATED", new_id())})
        for number in range(MOST_REHEARSED + 1)
    ]
    refused(run("import", "-", "--dry-run", answer="\n".join(lines)), 2)
    assert run("import", "-", "--dry-run", answer="\n".join(lines[1:])).returncode == 0


@pytest.mark.parametrize("answer", [b"", b"\n\n"])
def test_import__an_empty_input_warns(run: Run, answer: bytes) -> None:
    result = run("import", "-", answer=answer)
    assert result.returncode == 0
    assert "there are 0 events in -" in result.stderr


def test_import__a_closed_input_is_one_line(run: Run) -> None:
    assert "standard input, which is closed" in refused(run("import", "-", answer=None))


# --- wait


def test_wait__until_the_database_answers(database: Database) -> None:
    with proxy_to(database.app_url) as proxy:
        proxy.refusals = 3
        url = proxy.url.set(drivername="postgresql").render_as_string(hide_password=False)
        shown = told(selene_core("wait", "--json", "--url", url))
        assert shown["answers"] is True
        assert proxy.seen == 4


def test_wait__is_bounded(database: Database) -> None:
    result = selene_core("wait", "--seconds", "1", "--url", "postgresql://nobody@127.0.0.1:1/none")
    refused(result, 3)
    refused(selene_core("wait", "--seconds", "0", "--url", "postgresql://nobody@127.0.0.1:1/none"), 2)


def test_completion__knows_the_commands(run: Run) -> None:
    words = {"_SELENE_CORE_COMPLETE": "bash_complete", "COMP_WORDS": "selene-core st", "COMP_CWORD": "1"}
    assert run(**words).stdout.split() == ["plain,stats"]
    script = run(_SELENE_CORE_COMPLETE="zsh_source").stdout
    assert "#compdef selene-core" in script


# --- all of them


@pytest.mark.parametrize("command", ["list", "leases", "retries", "stats", "export"])
def test_commands__check_their_tenant(run: Run, command: str) -> None:
    for tenant in ("", " ", "a/../b\x1b", "x" * 65):
        line = refused(run(command, tenant))
        assert "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED: tenant_id" in line
    refused(run(command, "acme", "--url", "postgresql://nobody@127.0.0.1:1/none"), 3)


def test_commands__show_nothing_of_another_tenant(run: Run, order: str) -> None:
    for command in ("list", "leases", "retries", "stats", "export"):
        result = run(command, "globex")
        assert order not in result.stdout + result.stderr
        assert "worker-1" not in result.stdout
