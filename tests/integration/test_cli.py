"""The command line as a person and a script meet it (contract §15)."""

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import Engine, text

from selene_core import (
    ConversationRepository,
    IdentityRepository,
    LeaseRepository,
    StepAttemptRepository,
    append_events,
    tenant_scope,
)
from selene_core.cli import cli, main
from selene_core.migrations import downgrade, upgrade
from selene_core.schema.drift import expected_schema
from tests.integration.test_seals import make_keys
from tests.migrations.runs import alembic_env, run_all
from tests.support.calls import Tenant
from tests.support.commands import selene_core
from tests.support.data import synthetic_events, write_lines
from tests.support.factories import correlation_of, created, event
from tests.support.races import wait_until
from tests.support.raw import connect
from tests.support.servers import Database
from tests.support.workers import LIMITS, wait_past

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(database: Database) -> Run:
    """Run selene-core with the application's URL of the test database."""

    def call(*arguments: str, url: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        address = url or database.app_url.render_as_string(hide_password=False)
        return selene_core(*arguments, SELENE_DATABASE_URL=address, **more)

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


def test_show__long_and_wide_texts_stay_in_80_columns(run: Run, engine: Engine) -> None:
    ask = {"request_id": "ask-1", "target_user_id": "bob", "expires_at": "2030-01-01T00:00:00Z"}
    append_events(
        engine,
        "acme",
        [
            created("wo_wide", payload={"fields": {"city": "東京" * 60, "note": "word " * 100}}),
            event("EXTERNAL_APPROVAL_REQUESTED", "wo_wide", payload=ask),
        ],
    )
    shown = run("show", "acme", "wo_wide").stdout

    def columns(line: str) -> int:
        return sum(2 if unicodedata.east_asian_width(each) == "W" else 1 for each in line)

    assert max(map(columns, shown.splitlines())) <= 80
    assert 'target_user_id = "bob"' in shown
    assert f"{datetime.now(UTC):%Y-%m-%d} (UTC)" in shown


def test_show__joined_letters_and_emoji_come_whole(run: Run, engine: Engine) -> None:
    """What joins characters is shown; what turns the direction of the text around them is not."""
    marked = "e\u0301"
    fields = {
        "fa": "می\u200cخواهم سفر کنم",
        "with": "👨\u200d👩\u200d👧",
        "y": marked * 100,
        "z": "e" + "\u0301" * 5000,
    }
    hidden = {"override": "gpj.\u202etxt"}
    append_events(engine, "acme", [created("wo_joined", payload={"fields": fields | hidden})])
    shown = run("show", "acme", "wo_joined").stdout
    assert f'  fa = "{fields["fa"]}"\n' in shown
    assert f'  with = "{fields["with"]}"\n' in shown
    assert f'  y = "{marked * 72}…\n' in shown  # a mark takes no column
    assert max(map(len, shown.splitlines())) < 1000
    assert "\u202e" not in shown


def on_a_terminal(arguments: list[str], columns: int = 80) -> str:
    """Run selene-core with standard error on a terminal, and return what is drawn there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn = b""
    with (
        os.fdopen(leader, "rb", buffering=0) as terminal,
        subprocess.Popen(
            [sys.executable, "-m", "selene_core", *arguments],
            # Without the COLUMNS of a readline that pytest has loaded; a worker of xdist inherits it.
            env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
            stdout=subprocess.DEVNULL,
            stderr=follower,
        ) as process,
    ):
        os.close(follower)
        with suppress(OSError):  # which is how a terminal says that nobody writes to it any more
            while read := terminal.read(4096):
                drawn += read
    assert process.returncode == 0
    return drawn.decode()


@pytest.mark.slow
@pytest.mark.parametrize("watched", [True, False])
def test_progress__is_drawn_on_a_terminal_only(
    run: Run, database: Database, tmp_path: Path, watched: bool
) -> None:
    key, _ = make_keys(tmp_path)
    (tmp_path / "seals").mkdir()
    path = write_lines(tmp_path / "events.jsonl", synthetic_events(300))
    tenant = synthetic_events(1)[0]["tenant_id"]
    url = database.app_url.render_as_string(hide_password=False)
    seal = ["seal", tenant, "--key", str(key), "--out", str(tmp_path / "seals")]
    for arguments in (["import", str(path)], ["rebuild", tenant], ["verify", tenant, "--chain"], seal):
        if watched:
            drawn = on_a_terminal([*arguments, "--url", url])
            assert "100%" in drawn
            assert any(label in drawn for label in ("Importing", "Rebuilding", "Checking", "Sealing"))
        else:
            assert run(*arguments).stderr == ""


def test_show__json_is_whole(run: Run, order: str) -> None:
    result = run("show", "acme", order, "--json")
    shown = json.loads(result.stdout)
    assert shown["state"]["fields_json"]["city"] == "Zürich"
    assert [event["work_order_seq"] for event in shown["events"]] == [1, 2, 3]


@pytest.fixture
def conversation(engine: Engine, order: str) -> None:
    """Say what led to the order's events, and hide some of it."""
    thread = correlation_of(order)
    with tenant_scope(engine, "acme") as conn:
        IdentityRepository(conn).register_identity("alice")
        turns = ConversationRepository(conn)

        def say(turn_id: int, role: str, source: str, text: str) -> int:
            return turns.append(
                correlation_id=thread,
                turn_id=turn_id,
                user_id="alice",
                role=role,
                source=source,
                text=text,
                privacy_scope="PUBLIC_CHAT",
            ).conversation_turn_id

        say(1, "USER", "TYPED_TEXT", "To Zürich,\n\x1b[31mplease! " + "x" * 200)
        secret = say(2, "USER", "VOICE_TRANSCRIPT", "my number is 4711")
        say(3, "SELENE", "SELENE_OUTPUT", "Done.")
        turns.tombstone(thread, secret, reason_code=7)


@pytest.mark.usefixtures("conversation")
def test_show__conversation_beside_the_events(run: Run, order: str) -> None:
    result = run("show", "acme", order, "--conversation")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout
    assert "4711" not in result.stdout
    start = lines.index(f"thread {correlation_of(order)}")
    told = lines[start + 1 :]
    assert told[0].startswith("    1  USER: To Zürich,")
    events = [words[2] for line in told if (words := line.split())[1:2] and words[1].count(":") == 2]
    assert events == ["WORK_ORDER_CREATED", "FIELD_SET", "STATUS_CHANGED"]
    *_, hidden, answer, tombstone = told
    assert hidden.startswith("    2  USER: (")
    assert hidden.endswith("is hidden, reason 7)")
    assert answer.split() == ["3", "SELENE:", "Done."]
    assert "(hides " in tombstone


@pytest.mark.usefixtures("conversation")
def test_show__conversation_as_json(run: Run, order: str) -> None:
    shown = json.loads(run("show", "acme", order, "--conversation", "--json").stdout)
    assert [turn["turn_id"] for turn in shown["conversation"]] == [1, 2, 3, 4]
    assert [turn["text"] for turn in shown["conversation"]][1:] == [None, "Done.", ""]
    assert {turn["correlation_id"] for turn in shown["conversation"]} == {str(correlation_of(order))}
    assert shown["conversation"][1]["tombstone_reason_code"] == 7
    assert "conversation" not in json.loads(run("show", "acme", order, "--json").stdout)


def test_show__an_order_of_which_nothing_was_said(run: Run, order: str) -> None:
    result = run("show", "acme", order, "--conversation")
    assert result.returncode == 0
    assert result.stdout.count("FIELD_SET") == 1
    assert json.loads(run("show", "acme", order, "--conversation", "--json").stdout)["conversation"] == []


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
    assert "OS_WORK_ORDER_NOT_FOUND" in result.stderr


def test_show__what_was_asked_and_what_it_waits_for(run: Run, engine: Engine) -> None:
    request = {"request_id": "r1", "target_user_id": "bob", "expires_at": "2999-01-01T00:00:00Z"}
    append_events(
        engine,
        "acme",
        [
            created("wo"),
            event("FIELD_PROMPTED", "wo"),
            event("FIELD_CONFLICT_DETECTED", "wo", payload={"field_key": "city"}),
            event("EXTERNAL_APPROVAL_REQUESTED", "wo", payload=request),
        ],
    )
    lines = run("show", "acme", "wo").stdout.splitlines()
    assert "  waits for   approval r1" in lines
    assert "              from bob" in lines
    assert "              not told yet, expires 2999-01-01 00:00:00Z" in lines
    assert "  city: in conflict, not asked yet" in lines
    assert [line for line in lines if line.startswith("  place: asked once, last 20")]


def test_pending__lists_the_most_recent_first(run: Run, engine: Engine) -> None:
    assert run("pending", "acme").stdout == "Nothing is pending.\n"
    for name, requester in (("wo_1", "alice"), ("wo_2", "bob"), ("wo_3", "alice")):
        append_events(engine, "acme", [created(name, payload={"requester_user_id": requester})])

    def listed(*options: str) -> list[str]:
        result = run("pending", "acme", *options)
        assert result.returncode == 0, result.stderr
        return [line.split()[3] for line in result.stdout.splitlines() if line.startswith("20")]

    assert listed() == ["wo_3", "wo_2", "wo_1"]
    assert listed("--oldest-first", "--hours", "1") == ["wo_1", "wo_2", "wo_3"]
    assert listed("--requester", "alice") == ["wo_3", "wo_1"]
    limited = run("pending", "acme", "--limit", "2")
    assert limited.stderr == "… and more: --limit is 2\n"
    as_json = json.loads(run("pending", "acme", "--limit", "2", "--json").stdout)
    assert [order["work_order_id"] for order in as_json["pending"]] == ["wo_3", "wo_2"]
    assert as_json["more"] is True
    assert run("pending", "globex").stdout == "Nothing is pending.\n"


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


WAITING = text(
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
    " WHERE NOT granted AND relation IS NOT NULL AND datname = current_database()"
)


@pytest.mark.parametrize("how", ["fails", "is interrupted"])
def test_upgrade__that_stops_midway_says_what_it_has_run(
    run: Run, empty_database: Database, how: str
) -> None:
    """A reader is in the way of revision 0005; 0004 is committed."""
    url = empty_database.admin_url.render_as_string(hide_password=False)
    admin = empty_database.engine("admin")
    upgrade(empty_database.admin_url, "0003")

    def press() -> None:
        with admin.connect() as watcher:
            wait_until(lambda: watcher.scalar(WAITING) > 0, "the upgrade waits")
        os.kill(os.getpid(), signal.SIGINT)

    with admin.connect() as reader, ThreadPoolExecutor(1) as finger:
        reader.exec_driver_sql("LOCK TABLE os_core.work_order_ledger IN ACCESS SHARE MODE")
        if how == "fails":
            stopped = run("upgrade", "--json", url=url, SELENE_LOCK_TIMEOUT="50ms")
        else:
            pressing = finger.submit(press)
            stopped = run("upgrade", "--json", url=url, SELENE_LOCK_TIMEOUT="60s")
            pressing.result()
    assert json.loads(stopped.stdout)["error"]["revisions"] == ["0004"]
    assert stopped.returncode == (1 if how == "fails" else 130)
    assert stopped.stderr.endswith(" (run before that, and kept: 0004)\n")
    assert stopped.stderr.count("\n") == 1
    assert json.loads(run("current", "--json", url=url).stdout)["revision"] == "0004"


def test_current_and_history__say_where_the_database_stands(run: Run, database: Database) -> None:
    head, before = expected_schema().head, expected_schema().revisions[-2]
    url = database.admin_url.render_as_string(hide_password=False)
    assert run("current").stdout == f"{head}: the newest.\n"
    marked = [line for line in run("history").stdout.splitlines() if line.startswith("→")]
    assert [line.split()[1] for line in marked] == [head]
    downgrade(database.admin_url, before)
    stands = run("current", "--json", url=url)
    assert (stands.returncode, json.loads(stands.stdout)) == (1, {"revision": before, "newest": head})
    listed = json.loads(run("history", "--json", url=url).stdout)
    assert [each["revision"] for each in listed] == list(expected_schema().revisions)
    assert [each["revision"] for each in listed if each["current"]] == [before]
    assert all(each["purpose"].endswith(".") for each in listed)
    run_all(database, ["UPDATE os_core.alembic_version SET version_num = 'ffff'"])
    assert run("history", url=url).stdout.endswith("→ ffff  (not known to this version)\n")
    assert run("current", url=url).returncode == 1


@pytest.mark.slow
def test_history_and_sql__need_no_database(tmp_path: Path) -> None:
    for arguments, end in (("history", "\n"), ("sql", "COMMIT;\n\n"), ("sql --json", "}\n")):
        done = subprocess.run(
            [sys.executable, "-m", "selene_core", *arguments.split()],
            env=alembic_env(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(end)
        assert " " + expected_schema().head in done.stdout or expected_schema().head in done.stdout.split("'")


def test_sql__from_a_revision_on(run: Run) -> None:
    first, *_, last = expected_schema().revisions
    part = run("sql", f"{first}:{last}").stdout
    assert f"version_num='{last}'" in part
    assert "CREATE TABLE os_core.alembic_version" not in part
    assert run("sql", "no-such-revision").returncode == 1


@pytest.mark.parametrize("command", ["upgrade", "current", "history", "doctor", "verify acme"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody:hush-hush@127.0.0.1:1/none",
        "postgresql://nobody:hush@hush@127.0.0.1:1/none",
        "postgresql://nobody:hush-hush@127.0.0.1:x/none",
        "hush-hush",
    ],
)
def test_errors__never_show_the_password(
    command: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SELENE_DATABASE_URL", url)
    monkeypatch.setattr(sys, "argv", ["selene-core", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == (3 if "127.0.0.1:1/" in url and "@hush" not in url else 2)
    assert said.out == ""
    assert "hush" not in said.err
    assert said.err.startswith("selene-core: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (["verify", "not a tenant"], None),
        (["verify", "acme"], "postgresql://nobody@127.0.0.1:1/none"),
        (["verify"], None),
        (["unknown"], None),
        (["verify", "acme", "--work-order", "wo_none"], None),
        (["rebuild", "acme", "--work-order", "wo_none"], None),
        (["sql", ""], None),
        (["sql", "0003:"], None),
        (["sql", "0003:0001"], None),
        (["verify", "acme"], "postgresql://u:se@cr:et@127.0.0.1/db"),
        (["pending", "acme", "--limit", "0"], None),
        (["pending", "acme", "--hours", "inf"], None),
        (["pending", "acme", "--requester", " "], None),
        (["verify", "acme"], "not a url"),
        (["upgrade"], "postgresql://nobody@127.0.0.1:1/none"),
        (["doctor"], "postgresql://nobody@127.0.0.1:1/none"),
        (["sql", "no-such-revision"], None),
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


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("show acme wo_none", 1, {"code": "OS_WORK_ORDER_NOT_FOUND", "work_order_id": "wo_none"}),
        ("verify a/../..\x1b", 1, {"code": "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED", "field": "tenant_id"}),
        ("verify acme --work-order wo_none", 1, {"code": "OS_WORK_ORDER_NOT_FOUND"}),
        ("rebuild acme --work-order wo_none", 1, {"code": "OS_WORK_ORDER_NOT_FOUND"}),
        ("sql no-such-revision", 1, {"code": "MIGRATION_REFUSED"}),
        ("cancel acme wo_none --reason 7", 1, {"code": "OS_WORK_ORDER_NOT_FOUND"}),
        ("show acme wo_none --seq 1", 1, {"code": "OS_WORK_ORDER_NOT_FOUND"}),
        ("list acme --after wo_none", 1, {"code": "OS_WORK_ORDER_NOT_FOUND"}),
        ("stats a/../..\x1b", 1, {"code": "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED", "field": "tenant_id"}),
        ("list acme --status GONE", 2, {"code": "USAGE"}),
        ("verify", 2, {"code": "USAGE"}),
        ("pending acme --limit x", 2, {"code": "USAGE"}),
        ("no-such-command", 2, {"code": "USAGE"}),
        ("import /no/such/file.jsonl", 2, {"code": "USAGE"}),
        ("current --url nothing", 2, {"code": "USAGE"}),
        ("current --url postgresql://nobody@127.0.0.1/none?no_such_option=1", 2, {"code": "USAGE"}),
        ("current --url postgresql://nobody@127.0.0.1:1/none", 3, {"code": "UNREACHABLE"}),
        ("upgrade --url postgresql://nobody@127.0.0.1:1/none", 3, {"code": "UNREACHABLE"}),
        ("doctor --url postgresql://nobody@127.0.0.1:1,127.0.0.1:2/none", 3, {"code": "UNREACHABLE"}),
        ("show acme wo_none --url postgresql://nobody@127.0.0.1:1/none", 3, {"code": "UNREACHABLE"}),
    ],
)
def test_errors__have_an_exit_status_each_and_are_json_for_machines(
    run: Run, arguments: str, status: int, told: dict[str, str]
) -> None:
    plain, for_machines = run(*arguments.split()), run(*arguments.split(), "--json")
    assert (plain.returncode, for_machines.returncode) == (status, status)
    assert plain.stdout == ""
    error = json.loads(for_machines.stdout)["error"]
    assert error.items() >= told.items()
    assert error["message"] in plain.stderr
    assert plain.stderr == for_machines.stderr
    # A stable code stands in the line too; the name of a class of Python's never does.
    assert plain.stderr.startswith("selene-core: OS_") == told["code"].startswith("OS_")
    if "field" in error:
        assert error["message"] == f"{error['field']}: {error['rule']}"


def test_errors__a_lost_connection_is_an_unreachable_database(run: Run, database: Database) -> None:
    run_all(
        database,
        [
            "ALTER FUNCTION os_core.verify_work_orders OWNER TO CURRENT_USER",  # who may end any session
            "CREATE OR REPLACE FUNCTION os_core.verify_work_orders("
            "p_tenant_id text, p_work_order_id text DEFAULT NULL)"
            " RETURNS TABLE (work_order_id text, problem text) LANGUAGE plpgsql SECURITY DEFINER AS"
            " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END $$",
        ],
    )
    lost = run("verify", "acme", "--json")
    assert lost.returncode == 3
    assert json.loads(lost.stdout)["error"]["code"] == "UNREACHABLE"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["current", "current --json"])
@pytest.mark.parametrize("started", [["-m", "selene_core"], ["-c", "import selene_core"]])
def test_errors__without_libpq(arguments: str, started: list[str]) -> None:
    """psycopg is told to take an implementation that is not there, as on a machine without libpq."""
    done = subprocess.run(
        [sys.executable, *started, *arguments.split()],
        env={**os.environ, "PSYCOPG_IMPL": "none-of-its-own"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    words = 'psycopg finds no libpq: install "selene-os-core[binary]"'
    if started[0] == "-m":
        assert done.stderr.startswith(f"selene-core: {words}")
        assert done.stderr.count("\n") == 1
        assert ("LIBPQ_MISSING" in done.stdout) == ("--json" in arguments)
    else:  # whoever imports it gets the exception
        assert done.stderr.splitlines()[-1].startswith(f"ImportError: {words}")


CTRL_C_AT = """
import os, signal, sys

class AtImport:
    def find_spec(name, path=None, target=None):
        if name == os.environ["CTRL_C_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("started", "module"),
    [
        (["-m", "selene_core"], "selene_core.libpq"),
        ([str(Path(sys.executable).with_name("selene-core"))], "sqlalchemy.orm"),
        ([str(Path(sys.executable).with_name("selene-core"))], "selene_core.cli.errors"),
    ],
)
def test_errors__an_interruption_while_python_imports(
    tmp_path: Path, started: list[str], module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CTRL_C_AT)
    done = subprocess.run(
        [sys.executable, *started, "history", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CTRL_C_AT": module},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "selene-core: interrupted\n")
    assert json.loads(done.stdout) == {"error": {"code": "INTERRUPTED", "message": "interrupted"}}


@pytest.mark.slow
def test_import__leaves_ctrl_c_as_it_was(tmp_path: Path) -> None:
    """Only the command takes it: a program of another name gets KeyboardInterrupt, also while it imports."""
    (tmp_path / "sitecustomize.py").write_text(CTRL_C_AT)
    code = """
import signal
try:
    import selene_core.cli
except KeyboardInterrupt:
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CTRL_C_AT": "selene_core.cli.errors"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "import",
            "interrupted: run it again to go on: events with an idempotency_key are not appended twice",
        ),
        ("rebuild tenant_a", "interrupted: what was mended stays, run it again for the rest"),
        ("verify tenant_a", "interrupted"),
    ],
)
@pytest.mark.slow
def test_errors__an_interruption(
    database: Database, engine: Engine, admin_engine: Engine, tmp_path: Path, arguments: str, told: str
) -> None:
    """Each command waits for a lock when Ctrl-C is pressed."""
    events = synthetic_events(10)
    path = write_lines(tmp_path / "events.jsonl", events)
    words = [*arguments.split(), *([str(path)] if arguments == "import" else [])]
    url = database.app_url.render_as_string(hide_password=False)
    with admin_engine.begin() as conn:
        for table in ("work_order_ledger", "work_orders_current"):
            conn.execute(text(f"LOCK TABLE os_core.{table} IN ACCESS EXCLUSIVE MODE"))
        with subprocess.Popen(
            [sys.executable, "-m", "selene_core", *words, "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            with admin_engine.connect() as watcher:
                wait_until(lambda: watcher.scalar(WAITING) > 0, "the command waits")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", f"selene-core: {told}\n")


def test_verify_and_rebuild__warn_of_a_tenant_without_work_orders(run: Run, order: str) -> None:
    assert order in run("show", "acme", order).stdout
    assert "(1 work order)" in run("verify", "acme").stdout
    assert json.loads(run("verify", "acme", "--json").stdout) == {
        "clean": True,
        "work_orders": 1,
        "drifted": [],
    }
    for command, said in (("verify", "(0 work orders)"), ("rebuild", "0 work orders, ")):
        mistyped = run(command, "acmee")
        assert mistyped.returncode == 0
        assert said in mistyped.stdout
        assert (
            mistyped.stderr == "selene-core: warning: tenant acmee has 0 work orders: is it spelled right?\n"
        )
        as_json = json.loads(run(command, "acmee", "--json").stdout)
        assert (as_json["work_orders"], "0 work orders" in as_json["warning"]) == (0, True)


def test_verify__counts_orders_without_a_row_too(run: Run, order: str, admin_engine: Engine) -> None:
    with admin_engine.begin() as conn:
        conn.execute(text("DELETE FROM os_core.work_orders_current"))
    told = json.loads(run("verify", "acme", "--json").stdout)
    assert (told["work_orders"], len(told["drifted"]), told["clean"]) == (1, 1, False)
    assert "1 of 1 differ" in run("verify", "acme").stdout


UNUSUAL = {"city": "Zürich 🏔 東京", "sign": "→ …", "note": "word " * 60}


@pytest.fixture
def unusual(engine: Engine) -> str:
    """Append an order whose values hold characters of every kind."""
    append_events(
        engine,
        "acme",
        [
            created("wo_unusual", payload={"fields": UNUSUAL}),
            event("EXTERNAL_APPROVAL_REQUESTED", "wo_unusual"),
            event("EXTERNAL_APPROVAL_WAIT_NOTIFIED", "wo_unusual"),
        ],
    )
    return "wo_unusual"


ENCODINGS = [
    ("cp1252", {"PYTHONIOENCODING": "cp1252"}),
    ("latin-1", {"PYTHONIOENCODING": "latin-1"}),
    ("ascii", {"PYTHONIOENCODING": "ascii"}),
    ("ascii", {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}),
    ("ascii", {"LANG": "C", "LC_ALL": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "environment"), ENCODINGS)
def test_output__what_an_encoding_lacks_is_escaped(
    database: Database, unusual: str, encoding: str, environment: dict[str, str]
) -> None:
    def told(*arguments: str) -> tuple[str, str, int]:
        url = database.app_url.render_as_string(hide_password=False)
        done = subprocess.run(
            [sys.executable, "-m", "selene_core", *arguments],
            env={**os.environ, **environment, "SELENE_DATABASE_URL": url},
            capture_output=True,
            check=False,
        )
        return done.stdout.decode(encoding), done.stderr.decode(encoding), done.returncode

    shown, errors, status = told("show", "acme", unusual)
    assert (errors, status) == ("", 0)
    value = next(line for line in shown.splitlines() if line.startswith("  city = "))
    assert json.loads(value.partition(" = ")[2]) == UNUSUAL["city"]
    assert "WORK_ORDER_CREATED -> DRAFT" in shown
    assert max(map(len, shown.splitlines())) <= 80
    as_json = json.loads(told("show", "acme", unusual, "--json")[0])
    assert as_json["state"]["fields_json"] == UNUSUAL
    assert "-> " in told("history")[0]
    _, errors, status = told("import", "/no/such/東京.jsonl")
    assert status == 2
    assert errors.count("\n") == 1
    assert "/no/such/" in errors


def test_output__a_name_that_is_not_utf_8(run: Run, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    missing = run("import", str(path))
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    path.write_bytes(b"")
    assert run("import", str(path)).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", ["show acme wo_unusual", "show acme wo_unusual --json", "export acme", "sql", "history"]
)
def test_output__into_a_pipe_that_is_closed(database: Database, unusual: str, arguments: str) -> None:
    url = database.app_url.render_as_string(hide_password=False)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "selene_core", *arguments.split()],
        env={**os.environ, "SELENE_DATABASE_URL": url},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def drawn_lines(drawn: str) -> list[str]:
    """Take apart what was drawn over and over in one line of a terminal."""
    return [re.sub(r"\x1b\[\?25[lh]", "", line).rstrip() for line in re.split(r"[\r\n]+", drawn)]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [20, 44, 80])
def test_progress__fits_its_terminal(database: Database, tmp_path: Path, columns: int) -> None:
    path = write_lines(tmp_path / "events.jsonl", synthetic_events(300))
    url = database.app_url.render_as_string(hide_password=False)
    for arguments in (["import", str(path)], ["rebuild", "tenant_a"]):
        lines = drawn_lines(on_a_terminal([*arguments, "--url", url], columns))
        assert any("100%" in line for line in lines)
        if columns >= 44:
            assert max(map(len, lines)) < columns


@pytest.mark.parametrize("columns", [44, 60, 80])
def test_show__breaks_lines_between_words(run: Run, unusual: str, columns: int) -> None:
    shown = run("show", "acme", unusual, COLUMNS=str(columns)).stdout
    assert max(len(line) for line in shown.splitlines()) <= columns
    assert "EXTERNAL_APPROVAL_WAIT_NOTIFIED" in shown
    assert unusual in shown.split()
    assert str(correlation_of(unusual)) in shown.replace(",", "").split()
    note = " ".join(shown.partition("  note = ")[2].partition("\n  sign")[0].split())
    assert set(note.replace('"', "").split()) == {"word", "…"}


@pytest.mark.parametrize("columns", [44, 80])
def test_help__is_whole_at_any_width(run: Run, columns: int) -> None:
    told = run("--help", COLUMNS=str(columns)).stdout
    assert "..." not in told.partition("Commands:")[2].partition("Exit status")[0]
    assert "names every work order that differs." in " ".join(told.split())
    for status in (0, 1, 2, 3, 130, 141):
        assert re.search(rf"^ +{status} ", told, re.MULTILINE)
    for name in cli.commands:
        told += run(name, "--help", COLUMNS=str(columns)).stdout
    assert max(map(len, told.splitlines())) <= columns


@pytest.mark.parametrize("columns", [1, 2, 10, 20])
def test_help__is_told_on_a_terminal_without_room(run: Run, columns: int) -> None:
    done = run("--help", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")


def test_url__several_hosts_and_sockets(run: Run, order: str, database: Database) -> None:
    """The first host answers nothing: the second is taken, as libpq does."""
    url = database.app_url
    host, port = (url.query.get("host") or url.host, url.query.get("port") or url.port or 5432)
    assert isinstance(host, str)
    host = host.replace("/", "%2F")
    login = f"{url.username}:{quote(url.password, safe='')}" if url.password else url.username
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        for begin in ("postgresql", "postgres", "postgresql+psycopg"):
            several = (
                f"{begin}://{login}@{closed},{host}:{port}/{url.database}?target_session_attrs=read-write"
            )
            result = run("verify", "acme", url=several)
            assert (result.returncode, result.stderr) == (0, ""), several
            assert "(1 work order)" in result.stdout
        assert (
            run("current", url=f"postgresql://{login}@{closed},{host}:{port}/{url.database}").returncode == 0
        )
    assert run("current", url=f"postgresql://{login}@{host}:{port}/{url.database}").returncode == 0


def test_demo__without_a_server_is_one_line(run: Run, tmp_path: Path) -> None:
    result = run("demo", SELENE_PG_BIN=str(tmp_path))
    assert result.returncode == 3
    assert result.stderr.count("\n") == 1
    assert 'pip install "selene-os-core[local]"' in result.stderr


@pytest.mark.slow
def test_demo__everything_holds() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "selene_core", "demo"],
        env={**os.environ, "COLUMNS": "44"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("Everything held.\n")
    assert "NOT REFUSED" not in result.stdout
    assert "OS_WORK_ORDER_LEASE_LOST:" in result.stdout.split()
    assert max(map(len, result.stdout.splitlines())) <= 44
