"""The shortest history that still shows a finding, and a file that can be checked again without a server."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from soak.checker.answers import orders_of
from soak.checker.check import check_one
from soak.checker.finding import Finding, moment
from soak.checker.tables import Order, Row, Tables
from soak.history import Transaction, transactions

SECONDS = 30
UUIDS = ("correlation_id", "lease_id")


def cut(finding: Finding, tables: Tables, history: Sequence[Transaction]) -> list[Transaction]:
    """Return as few transactions as still show the finding; those that it names, if it is about no order."""
    place = finding.tenant, finding.subject
    if (order := tables.orders.get(place)) is None:
        order = Order()
    about = [
        each
        for each in history
        if each.tenant == finding.tenant and any(place[1] in orders_of(call) for call in each.calls)
    ]

    def shows(kept: Iterable[Transaction]) -> bool:
        return finding in check_one(place, order, kept)

    if not about or not shows(about):
        named = {name.rsplit("/", 1)[0] for name in finding.calls}
        return [each for each in history if f"{each.client}/{each.number}" in named]
    deadline = time.monotonic() + SECONDS
    size = max(1, len(about) // 2)
    while True:
        start, shorter = 0, False
        while start < len(about) and time.monotonic() < deadline:
            without = about[:start] + about[start + size :]
            if shows(without):
                about, shorter = without, True
            else:
                start += size
        if time.monotonic() > deadline or (size == 1 and not shorter):
            return about
        size = max(1, size // 2)


def show(kept: Iterable[Transaction]) -> Iterator[str]:
    """Write transactions as lines, in the sequence in which things happened."""
    records = [(record["t"], each, record) for each in kept for record in each.records]
    records.sort(key=lambda each: each[0])
    first = records[0][0] if records else 0
    for at, each, record in records:
        rest = {name: value for name, value in record.items() if name not in "cnte"}
        said = json.dumps(rest, ensure_ascii=False) if rest else ""
        yield f"  {(at - first) / 1e9:9.4f} s  {each.client}/{each.number}  {record['e']} {said}".rstrip()


def save(path: Path, finding: Finding, order: Order, kept: Iterable[Transaction]) -> None:
    """Write what shows a finding, so that `make soak ARGS="--again FILE"` can check it again."""
    document = {
        "finding": [finding.kind, finding.tenant, finding.subject, finding.what],
        "rows": {name: getattr(order, name) for name in Order.__slots__},
        "history": [record for each in kept for record in each.records],
    }
    path.write_text(json.dumps(document, default=_plain, indent=1, ensure_ascii=False), encoding="utf-8")


def check_again(path: Path) -> list[Finding]:
    """Check what was saved."""
    document = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    _, tenant, subject, _ = document["finding"]
    order = Order(**{name: [_row(row) for row in rows] for name, rows in document["rows"].items()})
    return [*check_one((tenant, subject), order, transactions(document["history"]))]


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.hex()
    return moment(value) if isinstance(value, datetime) else str(value)


def _row(row: Row) -> Row:
    return {name: _typed(name, value) for name, value in row.items()}


def _typed(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name in UUIDS:
        return UUID(value)
    return datetime.fromisoformat(value).astimezone(UTC) if name.endswith("_at") else value
