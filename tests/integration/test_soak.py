"""The soak test's checker finds what is wrong, and nothing else; and a short run of the whole."""

import ast
import random
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from soak.checker.check import check
from soak.checker.cut import check_again, cut, save, show
from soak.checker.tables import Tables
from soak.history import Transaction
from tests.support.programs import find_server
from tests.support.rehearsal import Rehearsal, dsn
from tests.support.servers import Database, Server

ROOT = Path(__file__).parents[2]
Admin = psycopg.Connection[Any]

pytestmark = pytest.mark.slow


@pytest.fixture
def rehearsal(database: Database, tmp_path: Path) -> Rehearsal:
    """Return clients on a database of their own."""
    return Rehearsal(dsn(database.app_url), dsn(database.admin_url), tmp_path, secrets.token_hex(4))


def test_checker__imports_nothing_of_what_it_checks() -> None:
    seen, names = set(), [path.stem for path in (ROOT / "soak" / "checker").glob("*.py")]
    waiting = [f"soak.checker.{name}" for name in names]
    while waiting:
        module = ROOT / (waiting.pop().replace(".", "/") + ".py")
        if module in seen or not module.exists():
            continue
        seen.add(module)
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [name for name in imported if name.startswith(("selene_core", "tests"))], module
                waiting += [name for name in imported if name.startswith("soak")]
    assert len(seen) > len(names)


def test_checker__finds_nothing_where_nothing_is_wrong(rehearsal: Rehearsal) -> None:
    tables, history = rehearsal.play(3)
    assert [str(finding) for finding in check(tables, history)] == []
    # It has looked at something of everything.
    done = {call.op for each in history for call in each.calls if call.fate == "acknowledged"}
    assert done >= {
        "append",
        "acquire",
        "renew",
        "release",
        "start",
        "finish",
        "turn",
        "turns",
        "get",
        "events",
    }
    assert {each.fate for each in history} >= {"acknowledged", "refused"}


@pytest.mark.parametrize("seed", ["1", ""], ids=["a fixed seed", "a random seed"])
def test_soak__a_short_run_finds_nothing(server: Server, seed: str, tmp_path: Path) -> None:
    given = {
        "--seconds": "12",
        "--kills": "5",
        "--seed": seed or str(secrets.randbelow(10**9)),
        "--folder": f"{tmp_path}/soak",
    }
    if find_server(server.version) is not None:
        given["--pg"] = str(server.version)
    ran = subprocess.run(
        [sys.executable, "-m", "soak", *(word for pair in given.items() for word in pair)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    # A failure shows the seed, the history and how to run it again.
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 findings" in ran.stdout


# --- faults in the functions and tables of a database


def functions(admin: Admin, name: str) -> str:
    """Return the definition of a function."""
    schema, _, function = name.partition(".")
    row = admin.execute(
        "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = %s::regnamespace AND proname = %s",
        (schema, function),
    ).fetchone()
    assert row is not None, f"there is no function {name}"
    definition: str = row[0]
    return definition


def replaced(name: str, pattern: str, by: str) -> Callable[[Admin], None]:
    """Plant another text in a function; it fails where the function no longer has that text."""

    def plant(admin: Admin) -> None:
        text, count = re.subn(pattern, by, functions(admin, name))
        assert count, f"{name} has no {pattern}"
        admin.execute(text.encode())

    return plant


def always(name: str, what: str) -> Callable[[Admin], None]:
    """Let a function return one thing, whatever it is asked."""
    return replaced(
        name, r"(?s)AS \$function\$.*\$function\$", f"AS $function$ BEGIN RETURN {what}; END $function$"
    )


def altered(table: str, event: str, body: str) -> Callable[[Admin], None]:
    """Let rows become other ones on their way into a table; by a name that sorts before other triggers."""

    def plant(admin: Admin) -> None:
        admin.execute(
            f"CREATE FUNCTION public.planted() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {body}; RETURN NEW; END $$; "
            f"CREATE TRIGGER aa_planted BEFORE {event} ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION public.planted()".encode()
        )

    return plant


def around(body: str) -> Callable[[Admin], None]:
    """Put another function in the place of append: it calls the true one."""

    def plant(admin: Admin) -> None:
        admin.execute(
            "ALTER FUNCTION os_core.append_work_order_events(text, jsonb) RENAME TO true_append;"
            " CREATE FUNCTION os_core.append_work_order_events(p_tenant_id text, p_events jsonb)"
            " RETURNS TABLE (work_order_event_id bigint, work_order_seq bigint, replayed boolean,"
            " created_at timestamptz) LANGUAGE plpgsql AS $$ #variable_conflict use_column\n"
            f" BEGIN {body} END $$".encode()
        )

    return plant


def unfenced(admin: Admin) -> None:
    """Let everybody see all rows of the projection."""
    admin.execute("ALTER TABLE os_core.work_orders_current DISABLE ROW LEVEL SECURITY")


def backwards(admin: Admin) -> None:
    """Let the ids of events fall."""
    admin.execute(
        "ALTER SEQUENCE os_core.work_order_ledger_work_order_event_id_seq"
        " INCREMENT -1 MAXVALUE 1000000 RESTART 1000000"
    )


LATE = r"pg_catalog.clock_timestamp() + INTERVAL '500 milliseconds'"
NOW = r"pg_catalog\.clock_timestamp\(\)"
LEDGER, CURRENT = "os_core.work_order_ledger", "os_core.work_orders_current"
FAULTS: dict[str, tuple[str, Callable[[Admin], None]]] = {
    "nothing is known already": ("rule", always("os_core.continuity_refusal", "NULL")),
    "any event may follow": ("rule", always("os_core.transition_refusal", "NULL")),
    "no lease is looked at": ("lease", always("os_core.lease_refusal", "NULL")),
    "a lease expires early": ("lease", replaced("os_core.acquire_lease", NOW, LATE)),
    "a used key takes any content": ("lost", always("os_core.same_content", "TRUE")),
    "the table of leases says another expiry": (
        "lease",
        altered(
            "os_core.work_order_leases",
            "INSERT",
            "NEW.lease_expires_at := NEW.lease_expires_at + INTERVAL '1 s'",
        ),
    ),
    "an attempt starts in the future": ("attempt", replaced("os_core.start_step_attempt", NOW, LATE)),
    "a retry is forgotten": (
        "attempt",
        altered("os_core.work_order_step_attempts", "UPDATE", "NEW.next_retry_at := NULL"),
    ),
    "an event is created in the past": (
        "order",
        altered(
            LEDGER, "INSERT", "NEW.created_at := NEW.created_at - INTERVAL '1 s' * (NEW.work_order_seq % 2)"
        ),
    ),
    "the caller's clock is forgotten": ("lost", altered(LEDGER, "INSERT", "NEW.occurred_at := NULL")),
    "a field is not updated": (
        "fold",
        altered(CURRENT, "UPDATE", "IF NEW.last_seq % 7 = 0 THEN NEW.fields_json := OLD.fields_json; END IF"),
    ),
    "everything is a state change": (
        "fold",
        altered(CURRENT, "UPDATE", "NEW.last_state_change_seq := NEW.last_seq"),
    ),
    "a prompt is not counted": (
        "fold",
        replaced("os_core.apply_work_order_event", r"bigint, 0\) \+ 1", "bigint, 0) + 2"),
    ),
    "a refused event of a batch is left out": (
        "lost",
        around(
            "FOR i IN 0..jsonb_array_length(p_events) - 1 LOOP BEGIN RETURN QUERY SELECT * FROM"
            " os_core.true_append(p_tenant_id, jsonb_build_array(p_events -> i));"
            " EXCEPTION WHEN SQLSTATE 'SL007' OR SQLSTATE 'SL008' OR SQLSTATE 'SL009' THEN"
            " RETURN QUERY SELECT 1::bigint, 1::bigint, FALSE, now();"
            " END; END LOOP;"
        ),
    ),
    "an event without a key is written twice": (
        "twice",
        around(
            "IF p_events @? '$[*] ? (!exists(@.idempotency_key))'"
            " AND p_events @? '$[*] ? (@.event_type == \"FIELD_SET\")'"
            " THEN PERFORM os_core.true_append(p_tenant_id, p_events); END IF;"
            " RETURN QUERY SELECT * FROM os_core.true_append(p_tenant_id, p_events);"
        ),
    ),
    "a replay answers with another id": (
        "replay",
        around(
            "RETURN QUERY"
            " SELECT work_order_event_id + replayed::integer, work_order_seq, replayed, created_at"
            " FROM os_core.true_append(p_tenant_id, p_events);"
        ),
    ),
    "a replay says that it is new": (
        "replay",
        around(
            "RETURN QUERY SELECT work_order_event_id, work_order_seq, FALSE, created_at"
            " FROM os_core.true_append(p_tenant_id, p_events);"
        ),
    ),
    "a tenant sees another's orders": ("read", unfenced),
    "ids fall": ("error", backwards),
    "a turn is written down wrongly": (
        "lost",
        altered("conversation.conversation_ledger", "INSERT", "NEW.turn_id := NEW.turn_id + 1000000"),
    ),
    "a hidden text is read": (
        "turn",
        replaced(
            "conversation.read_turns",
            r"WHEN tombstone\.conversation_turn_id IS NULL THEN",
            "ELSE",
        ),
    ),
}

# Of revisions that may not be there yet.
if (ROOT / "alembic" / "sql" / "feed").is_dir():
    FAULTS |= {
        "an event gets no position": (
            "feed",
            altered(
                "os_core.work_order_feed", "INSERT", "IF NEW.feed_position % 20 = 0 THEN RETURN NULL; END IF"
            ),
        ),
        "a consumer's place moves too far": (
            "feed",
            altered(
                "os_core.work_order_feed_consumers",
                "UPDATE",
                "NEW.feed_position := NEW.feed_position + NEW.feed_position % 2",
            ),
        ),
    }
if (ROOT / "alembic" / "sql" / "append" / "event_hash_v01.sql").exists():
    FAULTS |= {
        "a hash is another one": (
            "chain",
            altered(
                LEDGER,
                "INSERT",
                "IF NEW.work_order_seq % 7 = 0 THEN NEW.event_hash := sha256(NEW.event_hash); END IF",
            ),
        ),
        "a time is written that was not hashed": (
            "chain",
            altered(LEDGER, "INSERT", "NEW.occurred_at := NEW.occurred_at + INTERVAL '1 microsecond'"),
        ),
    }


@pytest.mark.parametrize("fault", FAULTS)
def test_checker__finds_a_planted_fault(rehearsal: Rehearsal, fault: str, tmp_path: Path) -> None:
    kind, plant = FAULTS[fault]
    with closing(psycopg.connect(rehearsal.admin_dsn, autocommit=True)) as admin:
        plant(admin)
    finding, tables, history = rehearsal.find(kind)
    kept = cut(finding, tables, history)
    place = finding.tenant, finding.subject
    assert len(kept) < len(history) / 2
    if place in tables.orders:
        # What is saved shows the same without the database, and its lines can be read.
        save(tmp_path / "finding.json", finding, tables.orders[place], kept)
        assert finding in check_again(tmp_path / "finding.json")
        assert len([*show(kept)]) >= len(kept)


# --- faults that a function cannot have: what a server that loses its disk, or lies, would leave


def lose_the_last_event(tables: Tables, history: list[Transaction], luck: random.Random) -> None:
    """Take the last event of an order, as if it had never been committed; its reads with it."""
    for order in tables.orders.values():
        if len(order.ledger) > 3 and order.ledger[-1]["event_type"].startswith("FIELD"):
            order.ledger.pop()
            return


def answer_with_an_error(tables: Tables, history: list[Transaction], luck: random.Random) -> None:
    """Tell a client that a call was refused which was not."""
    luck.shuffle(history)
    for transaction in history:
        call = transaction.calls[0] if transaction.calls else None
        if (
            call
            and call.op == "append"
            and call.fate == "acknowledged"
            and not (call.rows or [])[0]["replayed"]
        ):
            call.rows, call.sqlstate = None, "SL007"


def forget_half_of_a_batch(tables: Tables, history: list[Transaction], luck: random.Random) -> None:
    """Kill the client of a batch before its answer, and lose one of the batch's events."""
    for transaction in history:
        if transaction.isolation != "autocommit" or transaction.calls[0].op != "append":
            continue
        call = transaction.calls[0]
        if call.fate == "acknowledged" and call.rows and len(call.rows) > 1:
            lost = call.rows[-1]["work_order_event_id"]
            call.rows, call.answered, transaction.fate = None, None, "unknown"
            for order in tables.orders.values():
                order.ledger = [event for event in order.ledger if event["work_order_event_id"] != lost]


def answer_from_the_past(tables: Tables, history: list[Transaction], luck: random.Random) -> None:
    """Let every tenth read see the order as it was read first."""
    first: dict[Any, Any] = {}
    for transaction in sorted(history, key=lambda each: each.began):
        for call in transaction.calls:
            if call.op == "get" and call.rows:
                seen = first.setdefault((transaction.tenant, call.args["work_order_id"]), call.rows)
                call.rows = seen if luck.random() < 0.1 else call.rows


@pytest.mark.parametrize(
    ("kind", "alter"),
    [
        ("lost", lose_the_last_event),
        ("ghost", answer_with_an_error),
        ("torn", forget_half_of_a_batch),
        ("read", answer_from_the_past),
    ],
)
def test_checker__finds_what_a_server_would_lose_or_lie_about(
    rehearsal: Rehearsal, kind: str, alter: Callable[[Tables, list[Transaction], random.Random], None]
) -> None:
    finding, _, _ = rehearsal.find(kind, alter)
    assert finding.kind == kind
