"""Import events from JSON lines: batches per tenant, resumable, refused lines named (SPEC.md section 15)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from selene_core.contracts import WorkOrderLedgerEventInput, check_tenant_id
from selene_core.errors import ContractViolation, SeleneError, TenantScopeViolation
from selene_core.transactions import append_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Engine

BATCH_SIZE: Final = 500
# Many tenants with a few lines each must not gather the whole file in memory.
_MOST_PENDING: Final = 20 * BATCH_SIZE


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


def import_lines(
    engine: Engine,
    lines: Iterable[bytes],
    progress: Callable[[ImportReport], object] | None = None,
) -> ImportReport:
    """Append the events of JSON lines, each an object with the columns' names and `tenant_id`.

    The order of a tenant's lines is kept. A refused line is reported and left out; what depends on it is
    refused in its turn. Interrupted, it keeps what it has done: run it again, and lines with an
    idempotency_key are replays. `progress` gets the report so far after each line and at the end. Raises what
    is no refusal of a line, for example a lost connection.
    """
    report = ImportReport()
    pending: dict[str, _Batch] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        report.lines += 1
        try:
            tenant_id, event = _parse(line)
        except ContractViolation as exc:
            report.refused.append(RefusedLine(number, exc.code, str(exc)))
        else:
            batch = pending.setdefault(tenant_id, [])
            batch.append((number, event))
            if len(batch) >= BATCH_SIZE:
                _append(engine, tenant_id, pending.pop(tenant_id), report)
            elif sum(map(len, pending.values())) >= _MOST_PENDING:
                largest = max(pending, key=lambda tenant: len(pending[tenant]))
                _append(engine, largest, pending.pop(largest), report)
        if progress is not None:
            progress(report)
    for tenant_id, batch in pending.items():
        _append(engine, tenant_id, batch, report)
    report.refused.sort(key=lambda refused: refused.line)
    if progress is not None:
        progress(report)
    return report


def _parse(line: bytes) -> tuple[str, WorkOrderLedgerEventInput]:
    try:
        value = json.loads(
            line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except ContractViolation:
        raise
    # Too many digits in a number are a ValueError as well; too deep a nesting is none.
    except (ValueError, RecursionError) as exc:
        raise ContractViolation(field="line", rule="must be one JSON object in UTF-8") from exc
    if not isinstance(value, dict):
        raise ContractViolation(field="line", rule="must be one JSON object in UTF-8")
    return check_tenant_id(value.pop("tenant_id", None)), WorkOrderLedgerEventInput.from_mapping(value)


def _refuse_constant(name: str) -> object:
    raise ContractViolation(field="line", rule=f"must not hold {name}")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ContractViolation(field="line", rule="must not hold a key twice")
    return result


def _append(engine: Engine, tenant_id: str, batch: _Batch, report: ImportReport) -> None:
    """Append a batch; where the database refuses it, find the line at fault and go on without it."""
    todo = [batch]
    while todo:
        part = todo.pop()
        if not part:
            continue
        try:
            results = append_events(engine, tenant_id, [event for _, event in part])
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
