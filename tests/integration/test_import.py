"""selene-core import: complete, resumable, and every refused line named (contract §15)."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from selene_core import WorkOrderRepository, append_events, rebuild_tenant, tenant_scope
from selene_core.cli.import_files import LONGEST_LINE, read_lines
from selene_core.cli.importing import ImportReport, RefusedLine, import_lines
from tests.support.data import HELPDESK, HELPDESK_EVENTS, synthetic_events, write_lines
from tests.support.factories import wire
from tests.support.races import wait_until
from tests.support.servers import Database

TENANTS = ("tenant_a", "tenant_b", "tenant_c")
LEDGER = text(
    "SELECT tenant_id, work_order_id, work_order_seq, event_type, work_order_status, payload,"
    " idempotency_key,"
    " turn_id FROM os_core.work_order_ledger ORDER BY 1, 2, 3"
)
PROJECTION = text(
    "SELECT tenant_id, work_order_id, last_seq, work_order_status, fields_json, correlation_id, turn_id"
    " FROM os_core.work_orders_current ORDER BY 1, 2"
)


def contents(admin: Engine) -> tuple[list[Any], list[Any]]:
    """Return ledger and projection without what the database chose: ids and times."""
    with admin.connect() as conn:
        return list(conn.execute(LEDGER).all()), list(conn.execute(PROJECTION).all())


def import_file(engine: Engine, path: Path) -> ImportReport:
    with path.open("rb") as raw:
        return import_lines(engine, read_lines(raw))


def assert_clean(engine: Engine, tenants: tuple[str, ...] = TENANTS) -> None:
    for tenant in tenants:
        with tenant_scope(engine, tenant) as conn:
            assert WorkOrderRepository(conn).verify() == []


def test_import__helpdesk_log_is_appended_whole_and_again_is_replayed(
    engine: Engine, admin_engine: Engine, tmp_path: Path
) -> None:
    """The real log where it is there, synthetic events of the same kind where not."""
    expected = HELPDESK_EVENTS
    path = HELPDESK
    if not path.exists():
        events = synthetic_events(400)
        expected = len(events)
        path = write_lines(tmp_path / "events.jsonl.gz", events)

    first = import_file(engine, path)
    assert (first.lines, first.appended, first.replayed, first.refused) == (expected, expected, 0, [])
    assert_clean(engine)
    before = contents(admin_engine)
    assert {row.tenant_id for row in before[0]} == set(TENANTS)

    for tenant in TENANTS:
        assert rebuild_tenant(engine, tenant).changed == 0
    again = import_file(engine, path)
    assert (again.appended, again.replayed, again.refused) == (0, expected, [])
    assert contents(admin_engine) == before

    victims = [row.work_order_id for row in before[1] if row.tenant_id == "tenant_b"][:2]
    with admin_engine.begin() as conn:
        conn.execute(
            text("DELETE FROM os_core.work_orders_current WHERE work_order_id = :id"), {"id": victims[0]}
        )
        conn.execute(
            text(
                "UPDATE os_core.work_orders_current SET fields_json = '{}', turn_id = 99"
                " WHERE work_order_id = :id"
            ),
            {"id": victims[1]},
        )
    with tenant_scope(engine, "tenant_b") as conn:
        named = {order.work_order_id: order.problem for order in WorkOrderRepository(conn).verify()}
    assert named == {
        victims[0]: "the projection row is missing",
        victims[1]: "the projection row differs in fields_json, turn_id",
    }
    assert_clean(engine, ("tenant_a", "tenant_c"))
    assert rebuild_tenant(engine, "tenant_b").changed == 2
    assert_clean(engine)
    assert contents(admin_engine) == before


@pytest.mark.slow
def test_import__killed_in_the_middle_and_started_again_ends_the_same(
    server: Any,
    template_database: str,
    database: Database,
    engine: Engine,
    admin_engine: Engine,
    tmp_path: Path,
) -> None:
    events = synthetic_events(1500)
    path = write_lines(tmp_path / "events.jsonl", events)
    command = [sys.executable, "-m", "selene_core", "import", "-"]
    url = database.app_url.render_as_string(hide_password=False)
    importer = subprocess.Popen(
        command,
        env={**os.environ, "SELENE_DATABASE_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert importer.stdin is not None
    try:
        importer.stdin.writelines(path.read_bytes().splitlines(keepends=True)[: len(events) // 2])
        importer.stdin.flush()
        with admin_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            # What has been committed is counted, not what is under way.
            wait_until(
                lambda: conn.scalar(text("SELECT count(*) FROM os_core.work_order_ledger")) > 0,
                "a first batch",
            )
    finally:
        importer.kill()
        importer.communicate()
    with admin_engine.connect() as conn:
        survived = conn.scalar(text("SELECT count(*) FROM os_core.work_order_ledger"))
    assert 0 < survived < len(events), "the import must have been killed in the middle"
    assert_clean(engine)

    report = import_file(engine, path)
    assert report.refused == []
    assert report.appended + report.replayed == len(events)
    # The batch in flight may have been committed after the count.
    assert report.replayed >= survived
    assert_clean(engine)
    with server.new_database("test", template_database) as other:
        assert import_file(other.engine("app"), path).appended == len(events)
        assert contents(admin_engine) == contents(other.engine("admin"))


def test_import__refused_lines_are_named_and_the_others_imported(engine: Engine, tmp_path: Path) -> None:
    good = [
        {"tenant_id": "t1", **wire("WORK_ORDER_CREATED", f"wo_{n}", idempotency_key="c")} for n in range(3)
    ]
    lines: list[object] = [
        good[0],
        b"",
        b"{not json",
        b'{"tenant_id": "t1", "work_order_id": "wo_9", "turn_id": NaN}',
        {"tenant_id": "t 1", **wire("WORK_ORDER_CREATED", "wo_x")},
        {"tenant_id": "t1", **wire("FIELD_SET", "wo_unknown")},
        good[1],
        {"tenant_id": "t1", **wire("WORK_ORDER_CREATED", "wo_0", turn_id=7)},
        {
            "tenant_id": "t1",
            **wire("WORK_ORDER_CREATED", "wo_y", correlation_id=str(good[1]["correlation_id"])),
        },
        {"tenant_id": "t2", **wire("WORK_ORDER_CREATED", "wo_1")},
        b"[" * 100_000,
        b'{"tenant_id": "t1", "turn_id": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        {"tenant_id": "t1", **wire("LEASE_ACQUIRED", "wo_0")},
        good[2],
    ]
    report = import_file(engine, write_lines(tmp_path / "mixed.jsonl", lines))
    assert [(refused.line, refused.code) for refused in report.refused] == [
        (3, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (4, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (5, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (6, "OS_WORK_ORDER_NOT_FOUND"),
        (8, "OS_WORK_ORDER_INVALID_TRANSITION"),
        (9, "OS_WORK_ORDER_CORRELATION_CONFLICT"),
        (10, "OS_WORK_ORDER_ID_UNAVAILABLE"),
        (11, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (12, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (13, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
        (14, "OS_WORK_ORDER_CONTRACT_VALIDATION_FAILED"),
    ]
    assert (report.lines, report.appended, report.replayed) == (14, 3, 0)
    assert isinstance(report.refused[0], RefusedLine)
    assert all(refused.reason for refused in report.refused)


def test_import__many_tenants_keep_their_order_in_bounded_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selene_core.cli import importing

    monkeypatch.setattr(importing, "BATCH_SIZE", 4)
    monkeypatch.setattr(importing, "_MOST_PENDING", 10)
    events = synthetic_events(30, tenants=tuple(f"t{n}" for n in range(15)))
    sizes: list[int] = []

    def counted(engine: Engine, tenant_id: str, batch: Any) -> Any:
        sizes.append(len(batch))
        return append_events(engine, tenant_id, batch)

    monkeypatch.setattr(importing, "append_events", counted)
    report = import_lines(engine, (json.dumps(event).encode() for event in events))
    assert report.appended == len(events)
    assert max(sizes) <= 4
    assert Counter(event["tenant_id"] for event in events).keys() == {f"t{n}" for n in range(15)}
    assert_clean(engine, tuple(f"t{n}" for n in range(15)))


def line_of(number: int, **fields: Any) -> bytes:
    """Compose a line that creates a work order of its own."""
    payload = {"fields": fields} if fields else {}
    created = wire("WORK_ORDER_CREATED", f"wo_{number}", idempotency_key="c", payload=payload)
    return json.dumps({"tenant_id": "t1", **created}).encode()


LINES = [line_of(number) for number in range(3)]
FILE = b"\n".join(LINES) + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + FILE,
        b"\xef\xbb\xbf\r\n" + FILE,
        b"\xef\xbb\xbf" + LINES[0] + b"\n\xef\xbb\xbf" + b"\n".join(LINES[1:]),
        FILE.replace(b"\n", b"\r\n"),
        b"\n \t\n" + FILE.replace(b"\n", b"\n\r\n\n") + b"  ",
        FILE.replace(b"\n", b" \t \n"),
        FILE.rstrip(),
        gzip.compress(FILE),
        b"".join(gzip.compress(line + b"\n") for line in LINES),
        b"".join(gzip.compress(part) for part in (FILE[:100], b"", FILE[100:])),
        gzip.compress(FILE) + b"\0" * 1000,
    ],
    ids=[
        "bom",
        "bom-line",
        "bom-each",
        "crlf",
        "blank",
        "trailing",
        "no-newline",
        "gzip",
        "members",
        "split-members",
        "padded",
    ],
)
@pytest.mark.parametrize("name", ["events.jsonl", "events.jsonl.gz", "events"])
def test_import__files_as_other_programs_write_them(
    engine: Engine, tmp_path: Path, data: bytes, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    report = import_file(engine, path)
    assert (report.lines, report.appended, report.refused) == (3, 3, [])


@pytest.mark.parametrize(
    "data",
    [b"", b"\xef\xbb\xbf", b"\n\r\n  \n", gzip.compress(b"")],
    ids=["nothing", "mark", "blank lines", "gzip of nothing"],  # a gzip header has the time in it
)
def test_import__a_file_without_events(engine: Engine, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(data)
    assert import_file(engine, path) == ImportReport()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (FILE.decode().encode("utf-16"), "UTF-16"),
        (FILE.decode().encode("utf-16-le"), "UTF-16"),
        (FILE.decode().encode("utf-16-be"), "UTF-16"),
        (FILE.decode().encode("utf-32"), "UTF-32"),
        (b"[\n" + b",\n".join(LINES) + b"\n]\n", "JSON lines"),
        (b"[" + b",\n".join(LINES) + b"]", "JSON lines"),
        (b"[" + b",".join(LINES) + b"]", "must be one JSON object"),
        (b"[" + b",".join(LINES * 2000) + b"]", "JSON lines"),
        (json.dumps(json.loads(LINES[0]), indent=2).encode(), "JSON lines"),
        (b"PK\x03\x04" + FILE, "zip"),
        (b"\xfd7zXZ\0" + FILE, "xz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_import__a_file_of_another_kind_is_refused_once(
    engine: Engine, admin_engine: Engine, tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(data)
    report = import_file(engine, path)
    [refused] = report.refused
    assert (refused.line, report.appended) == (1, 0)
    assert words in refused.reason
    assert contents(admin_engine) == ([], [])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (LINES[0][:-2], "must be one JSON object: "),
        (b"{'a': 1}", "must be one JSON object: Expecting property name"),
        (LINES[0] + LINES[1], "must be one JSON object: Extra data at character"),
        (b'{"tenant_id": "t1", "tenant_id": "t2"}', "must not hold the key tenant_id twice"),
        (line_of(9, c=1).replace(b'"c": 1', b'"c": 1, "c": 2'), "must not hold the key c twice"),
        (line_of(9, c="x").replace(b'"x"', b'"Z\xfcrich"'), "must be UTF-8, which its byte"),
        (b"\0" * 5000, "NUL bytes"),
        (b"\0" * (LONGEST_LINE + 5000), "NUL bytes"),
        (LINES[0] + b"\0\0", "NUL bytes"),
        (b'{"x": "' + b"a" * 3_000_000 + b'"}', "must be at most 1,048,576 bytes"),
        (b" " * (LONGEST_LINE + 1) + LINES[0], "must be at most 1,048,576 bytes"),
        (line_of(9).replace(b'"turn_id": 1', b'"turn_id": 1.0'), "turn_id: must be an integer"),
        (line_of(9).replace(b'"turn_id": 1', b'"turn_id": 1e5'), "turn_id: must be an integer"),
        (line_of(9, c="\ud800"), "payload.fields.c: must not contain NUL or lone surrogates"),
        (line_of(9, c="a\0b"), "payload.fields.c: must not contain NUL or lone surrogates"),
        (b"[" * 200_000, "must not be nested so deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "must not hold a number of so many digits"),
        (b"7", "must be one JSON object, with the columns' names as keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_import__a_line_that_cannot_be_read_says_why(
    engine: Engine, tmp_path: Path, bad: bytes, words: str
) -> None:
    report = import_file(engine, write_lines(tmp_path / "events.jsonl", [LINES[0], bad, LINES[1]]))
    assert [refused.line for refused in report.refused] == [2]
    assert words in report.refused[0].reason
    assert len(report.refused[0].reason) < 200
    assert (report.lines, report.appended) == (3, 2)


def test_import__escapes_are_what_they_stand_for(
    engine: Engine, admin_engine: Engine, tmp_path: Path
) -> None:
    told = {"city": "Zürich 🏔", "tab": "a\tb", "line": "a\u2028b"}
    path = write_lines(tmp_path / "events.jsonl", [line_of(1, **told)])
    assert b"\\u00fc" in path.read_bytes()
    assert import_file(engine, path).appended == 1
    assert contents(admin_engine)[1][0].fields_json == told


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(FILE)[:-12] + b"\n",
        gzip.compress(FILE) + b"and more",
        gzip.compress(FILE) + gzip.compress(line_of(7))[:15],
    ],
    ids=["cut", "garbage", "second-member-cut"],
)
def test_import__damage_is_the_line_where_it_begins(engine: Engine, tmp_path: Path, damaged: bytes) -> None:
    """What can be read before it is imported."""
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(damaged)
    report = import_file(engine, path)
    [refused] = report.refused
    assert refused.reason.startswith("file: is damaged or cut off from here on (")
    assert refused.line == report.lines == report.appended + 1
    if not damaged.endswith(b"\n"):
        assert report.appended == 3
