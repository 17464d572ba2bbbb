"""Export a tenant's events as the JSON lines that import reads (contract §15)."""

from __future__ import annotations

import gzip
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Text, cast, func, select

from selene_core.cli.rendering import plain
from selene_core.contract.events import check_tenant_id, check_work_order_id
from selene_core.store.scope import tenant_scope
from selene_core.store.tables import work_order_ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection, Engine, RowMapping, Select

_PAGE: Final = 1000
_EVENTS: Final = work_order_ledger.columns
# Of the columns those that an event is given; of the others the database is the author.
_GIVEN: Final = (
    "tenant_id",
    "work_order_id",
    "correlation_id",
    "turn_id",
    "event_type",
    "work_order_status",
    "reason_code",
    "step_id",
    "step_input_hash",
    "idempotency_key",
    "occurred_at",
)
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7e]+")
_OF_LEASES: Final = _EVENTS.event_type.startswith("LEASE_", autoescape=True)


@dataclass(slots=True)
class ExportReport:
    """What an export did: the events written, and those of leases, which import cannot take."""

    events: int = 0
    left_out: int = 0


def export_lines(
    engine: Engine,
    tenant_id: str,
    write: Callable[[str], object],
    *,
    work_order_id: str | None = None,
    with_keys: bool = False,
) -> ExportReport:
    """Write the events of a tenant, or of one work order, in the order of their ids, one line each.

    Reads one snapshot, a page in memory at a time. LEASE_* events are counted and left out. `with_keys` gives
    an event without an idempotency_key one that is made of its id.
    """
    check_tenant_id(tenant_id)
    wanted = [_EVENTS.tenant_id == tenant_id]
    if work_order_id is not None:
        wanted.append(_EVENTS.work_order_id == check_work_order_id(work_order_id))
    columns = (_EVENTS[name] for name in ("work_order_event_id", *_GIVEN))
    # The payload as the database writes it: numbers keep their digits.
    rows = select(*columns, cast(_EVENTS.payload, Text).label("payload")).where(*wanted, ~_OF_LEASES)
    left_out = select(func.count()).select_from(work_order_ledger).where(*wanted, _OF_LEASES)
    report = ExportReport()
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
    with tenant_scope(snapshot, tenant_id) as conn:
        report.left_out = conn.scalar(left_out) or 0
        for row in _streamed(conn, rows.order_by(_EVENTS.work_order_event_id)):
            write(_line(row, with_keys=with_keys))
            report.events += 1
    return report


def _streamed(conn: Connection, rows: Select[Any]) -> Iterator[RowMapping]:
    with conn.execute(rows.execution_options(yield_per=_PAGE)) as result:
        yield from result.mappings()


def _line(row: RowMapping, *, with_keys: bool) -> str:
    given = {name: row[name] for name in _GIVEN if row[name] is not None}
    if with_keys and row["idempotency_key"] is None:
        given["idempotency_key"] = f"export:{row['work_order_event_id']}"
    envelope = json.dumps(given, default=plain)
    # Beyond ASCII there are only texts, in which some programs take U+2028 for the end of a line.
    payload = _BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], row["payload"])
    return f'{envelope[:-1]}, "payload": {payload}}}\n'


@contextmanager
def written(file: Path) -> Iterator[Callable[[str], object]]:
    """Yield what writes to a text file, compressed if its name ends in .gz.

    A file takes its place when it is whole: until then one of that name stays as it is.
    """
    place = file.resolve()
    is_special = place.exists() and not place.is_file()  # a device, a named pipe
    part = place if is_special else place.with_name(f"{place.name}.part")
    try:
        with (
            gzip.open(part, "wt", encoding="ascii")
            if file.suffix == ".gz"
            else part.open("w", encoding="ascii") as lines
        ):
            yield lines.write
        if not is_special:
            part.replace(place)
    except BaseException:
        if not is_special:
            part.unlink(missing_ok=True)
        raise
