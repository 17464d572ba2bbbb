"""Import events from JSON lines: batches per tenant, resumable, refused lines named (contract §15)."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import click

from selene_core.cli.import_files import LONGEST_LINE
from selene_core.contract.errors import ContractViolation, SeleneError, TenantScopeViolation
from selene_core.contract.events import WorkOrderLedgerEventInput, check_tenant_id
from selene_core.contract.frozen_json import label
from selene_core.store.transactions import append_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection, Engine

    from selene_core.contract.rows import AppendResult

BATCH_SIZE: Final = 500
MOST_REHEARSED: Final = 10
"""The tenants whose lines one dry run takes."""

# Many tenants with a few lines each must not gather the whole file in memory.
_MOST_PENDING: Final = 20 * BATCH_SIZE
_BOM: Final = b"\xef\xbb\xbf"
_OTHER_BOMS: Final = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was not imported: its number in the file, counted from 1, and why."""

    line: int
    code: str
    reason: str


@dataclass(slots=True)
class ImportReport:
    """What an import did: lines read (blank ones apart), events appended, replays, refusals."""

    lines: int = 0
    appended: int = 0
    replayed: int = 0
    refused: list[RefusedLine] = field(default_factory=list)


_Batch = list[tuple[int, WorkOrderLedgerEventInput]]

_Append: TypeAlias = "Callable[[str, list[WorkOrderLedgerEventInput]], list[AppendResult]]"


@contextmanager
def _real(engine: Engine) -> Iterator[_Append]:
    """Append each batch in a transaction of its own."""
    yield lambda tenant_id, events: append_events(engine, tenant_id, events)


@contextmanager
def _rehearsal(engine: Engine) -> Iterator[_Append]:
    """Append in one transaction for each tenant; all are rolled back at the end."""
    with ExitStack() as stack:
        conns: dict[str, Connection] = {}

        def append(tenant_id: str, events: list[WorkOrderLedgerEventInput]) -> list[AppendResult]:
            if tenant_id not in conns:
                if len(conns) == MOST_REHEARSED:
                    raise click.UsageError(f"a dry run takes a file of at most {MOST_REHEARSED} tenants")
                conns[tenant_id] = stack.enter_context(engine.connect())
                conns[tenant_id].begin()
            # A refusal undoes its batch alone.
            with conns[tenant_id].begin_nested():
                return append_events(conns[tenant_id], tenant_id, events)

        yield append


def import_lines(
    engine: Engine,
    lines: Iterable[bytes],
    progress: Callable[[ImportReport], object] | None = None,
    *,
    dry_run: bool = False,
) -> ImportReport:
    """Append the events of JSON lines, each an object with the columns' names and `tenant_id`.

    The order of a tenant's lines is kept. A refused line is reported and left out; what depends on it is
    refused in its turn. The reading ends where `lines` raises ContractViolation, and at a first line that is
    not of JSON lines: that line is reported, and what came before it is imported. Interrupted, it keeps what
    it has done: run it again, and lines with an idempotency_key are replays. `progress` gets the report so
    far after each line and at the end. With `dry_run` everything is rolled back at the end; each tenant needs
    a connection until then. Raises what is no refusal of a line, for example a lost connection.
    """
    report = ImportReport()
    with _rehearsal(engine) if dry_run else _real(engine) as append:
        _import(append, lines, report, progress or (lambda _report: None))
    report.refused.sort(key=lambda refused: refused.line)
    return report


def _import(
    append: _Append,
    lines: Iterable[bytes],
    report: ImportReport,
    progress: Callable[[ImportReport], object],
) -> None:
    pending: dict[str, _Batch] = {}
    for number, line in _readable(lines, report):
        try:
            tenant_id, event = _parse(line)
        except ContractViolation as exc:
            report.refused.append(RefusedLine(number, exc.code, str(exc)))
        else:
            batch = pending.setdefault(tenant_id, [])
            batch.append((number, event))
            if len(batch) >= BATCH_SIZE:
                _append(append, tenant_id, pending.pop(tenant_id), report)
            elif sum(map(len, pending.values())) >= _MOST_PENDING:
                largest = max(pending, key=lambda tenant: len(pending[tenant]))
                _append(append, largest, pending.pop(largest), report)
        progress(report)
    for tenant_id, batch in pending.items():
        _append(append, tenant_id, batch, report)
    progress(report)


def _readable(lines: Iterable[bytes], report: ImportReport) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, until one cannot be read; report that one."""
    number, begun = 1, False
    try:
        for line in lines:
            # Files that were joined have a byte order mark at the beginning of each.
            text = line.removeprefix(_BOM)
            if text.strip() or len(text) > LONGEST_LINE:
                if not begun:
                    _check_first(text)
                begun = True
                report.lines += 1
                yield number, text
            number += 1
    except ContractViolation as exc:
        report.lines += 1
        report.refused.append(RefusedLine(number, exc.code, str(exc)))


def _check_first(line: bytes) -> None:
    """Refuse what is no file of JSON lines as a whole, and not line by line."""
    if line.startswith(_OTHER_BOMS) or (len(line) > 1 and (line[0] == 0) != (line[1] == 0)):
        raise ContractViolation(field="file", rule="is in UTF-16 or UTF-32: convert it to UTF-8 first")
    # An array that ends in this line is refused as a line.
    if line.strip() == b"{" or (line.lstrip().startswith(b"[") and not line.rstrip().endswith(b"]")):
        raise ContractViolation(
            field="file", rule="is not of JSON lines: write each event in a line of its own, as jq -c does"
        )


def _parse(line: bytes) -> tuple[str, WorkOrderLedgerEventInput]:
    try:
        value = json.loads(_text(line), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as exc:
        raise _refusal(f"must be one JSON object: {exc.msg} at character {exc.pos + 1}") from exc
    except RecursionError as exc:
        raise _refusal("must not be nested so deep") from exc
    except ValueError as exc:  # of int(), which takes 4300 digits
        raise _refusal("must not hold a number of so many digits") from exc
    if not isinstance(value, dict):
        raise _refusal("must be one JSON object, with the columns' names as keys")
    return check_tenant_id(value.pop("tenant_id", None)), WorkOrderLedgerEventInput.from_mapping(value)


def _text(line: bytes) -> str:
    if b"\0" in line:
        raise _refusal("must not hold NUL bytes: the file is padded or damaged there")
    if len(line.rstrip(b"\r\n")) > LONGEST_LINE:
        raise _refusal(f"must be at most {LONGEST_LINE:,} bytes long")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _refusal(f"must be UTF-8, which its byte {exc.start + 1} is not") from exc


def _refusal(rule: str) -> ContractViolation:
    return ContractViolation(field="line", rule=rule)


def _refuse_constant(name: str) -> object:
    raise _refusal(f"must not hold {name}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise _refusal(f"must not hold the key {label(key)} twice")
        result[key] = value
    return result


def _append(append: _Append, tenant_id: str, batch: _Batch, report: ImportReport) -> None:
    """Append a batch; if the database refuses it, find the faulty line and go on without it."""
    todo = [batch]
    while todo:
        part = todo.pop()
        if not part:
            continue
        try:
            results = append(tenant_id, [event for _, event in part])
        except TenantScopeViolation:
            raise
        except SeleneError as exc:
            index = getattr(exc, "event_index", None)
            if len(part) == 1:
                report.refused.append(RefusedLine(part[0][0], exc.code, str(exc)))
            elif index is not None and 0 <= index < len(part):
                todo += [part[index + 1 :], [part[index]], part[:index]]
            else:
                todo += [part[len(part) // 2 :], part[: len(part) // 2]]
        else:
            replayed = sum(result.replayed for result in results)
            report.replayed += replayed
            report.appended += len(results) - replayed
