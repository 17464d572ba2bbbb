"""The commands for whoever operates: list, cancel, leases, retries, stats, export, wait (contract §15)."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from selene_core.cli.errors import going_on, warn, warned_of_none
from selene_core.cli.exporting import export_lines, written
from selene_core.cli.options import engine_on, json_option, limit_option, required, url_option
from selene_core.cli.rendering import counted, due_lines, lease_lines, order_lines, stats_lines, to_json
from selene_core.cli.terminal import page_on, pouring, say
from selene_core.contract.enums import LeaseState, WorkOrderStatus
from selene_core.contract.rules import MAX_REASON_CODE
from selene_core.store.attempts import StepAttemptRepository
from selene_core.store.failures import is_lost
from selene_core.store.scope import tenant_scope
from selene_core.store.tables import work_order_leases, work_orders_current
from selene_core.store.work_orders import WorkOrderRepository

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LEASES: Final = work_order_leases.columns
# What an operator may see: not the hash of the token.
_SHOWN: Final = (
    "work_order_id",
    "lease_owner_id",
    "lease_id",
    "fence",
    "acquired_at",
    "renewed_at",
    "lease_expires_at",
)
_MOST_DUE: Final = 1000
_CANCELED_BY_HAND: Final = "selene-core cancel"
_OF_IMPORT: Final = "import cannot take them: see docs/command-line.md"
_CONNECT_SECONDS: Final = 10
_POLL_SECONDS: Final = 0.25


@click.command(name="list")
@click.argument("tenant")
@click.option(
    "--status",
    "statuses",
    type=click.Choice([each.value for each in WorkOrderStatus], case_sensitive=False),
    multiple=True,
    metavar="STATUS",
    help="Only those in this status; may be given several times.",
)
@click.option("--requester", metavar="USER", help="Only those that this user requested.")
@click.option("--owner", help="Only those whose last lease is this owner's, and was not given back.")
@click.option("--oldest-first", is_flag=True, help="Those that were created first.")
@click.option("--after", metavar="WORK_ORDER", help="Go on after this one, the last of the page before.")
@limit_option
@url_option
@json_option
def list_(
    tenant: str,
    statuses: tuple[str, ...],
    requester: str | None,
    owner: str | None,
    oldest_first: bool,
    after: str | None,
    limit: int,
    url: str,
    as_json: bool,
) -> None:
    """List work orders by creation, newest first."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        orders = WorkOrderRepository(conn)
        found = orders.list_orders(
            statuses=statuses or None,
            requester_user_id=requester,
            lease_owner_id=owner,
            limit=limit + 1,
            oldest_first=oldest_first,
            after=None if after is None else required(orders, after),
        )
    if as_json:
        say(to_json({"work_orders": found[:limit], "more": len(found) > limit}))
        return
    for line in order_lines(found[:limit], page=page_on(sys.stdout)):
        say(line)
    _close_list(found, limit, "There are no such work orders.")


@click.command()
@click.argument("tenant")
@click.argument("work_order")
@click.option("--reason", type=click.IntRange(1, MAX_REASON_CODE), required=True, help="The reason code.")
@click.option("--note", help="Why, in words; it stays in the ledger.")
@click.option(
    "--key",
    default=_CANCELED_BY_HAND,
    show_default=True,
    help="The idempotency key: the same call again changes nothing.",
)
@url_option
@json_option
def cancel(
    tenant: str, work_order: str, reason: int, note: str | None, key: str, url: str, as_json: bool
) -> None:
    """Cancel WORK_ORDER, for good. Run again it says that it is canceled."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        result = WorkOrderRepository(conn).cancel(work_order, reason, key, note)
    if as_json:
        say(to_json({"work_order_id": work_order, **asdict(result)}))
    else:
        before = "was canceled before" if result.replayed else "is canceled"
        say(f"{work_order} {before}: event {result.work_order_event_id}, seq {result.work_order_seq}")


@click.command()
@click.argument("tenant")
@limit_option
@url_option
@json_option
def leases(tenant: str, limit: int, url: str, as_json: bool) -> None:
    """List the leases that were not given back: who works on what, until when.

    An expired one stays until somebody takes it over or gives it back. The first to expire come first.
    """
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        found = _leases(conn, tenant, limit + 1)
    if as_json:
        say(to_json({"leases": found[:limit], "more": len(found) > limit}))
        return
    for line in lease_lines(found[:limit], page=page_on(sys.stdout)):
        say(line)
    _close_list(found, limit, "Nobody holds a lease.")


def _leases(conn: Connection, tenant: str, limit: int) -> list[dict[str, Any]]:
    held = _LEASES.lease_expires_at > func.clock_timestamp()
    rows = (
        select(*(_LEASES[name] for name in _SHOWN), held.label("held"))
        .where(_LEASES.tenant_id == tenant, _LEASES.lease_state == LeaseState.ACTIVE.value)
        .order_by(_LEASES.lease_expires_at, _LEASES.work_order_id)
        .limit(limit)
    )
    return [dict(row) for row in conn.execute(rows).mappings()]


@click.command()
@click.argument("tenant")
@limit_option
@url_option
@json_option
def retries(tenant: str, limit: int, url: str, as_json: bool) -> None:
    """List the steps that may be attempted again now: failed with the retry due, or past their timeout."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        due = StepAttemptRepository(conn).due_retries(limit + 1)
    if as_json:
        say(to_json({"retries": due[:limit], "more": len(due) > limit}))
        return
    for line in due_lines(due[:limit], page=page_on(sys.stdout)):
        say(line)
    _close_list(due, limit, "No retry is due.")


def _close_list(found: list[Any], limit: int, nothing: str) -> None:
    if len(found) > limit:
        say(f"… and more: --limit is {limit}", err=True)
    elif not found:
        say(nothing)


@click.command()
@click.argument("tenant")
@url_option
@json_option
def stats(tenant: str, url: str, as_json: bool) -> None:
    """Count work orders by status, leases and due retries, and say since when the oldest waits."""
    with engine_on(url) as engine, tenant_scope(engine, tenant) as conn:
        counted = _stats(conn, tenant)
    warning = warned_of_none(tenant, sum(counted["work_orders"].values()))
    if as_json:
        say(to_json({**counted, **warning}))
        return
    for line in stats_lines(counted, page=page_on(sys.stdout)):
        say(line)


def _stats(conn: Connection, tenant: str) -> dict[str, Any]:
    status, everything = work_orders_current.c.work_order_status, func.count()
    mine = work_orders_current.c.tenant_id == tenant
    counts = dict.fromkeys((each.value for each in WorkOrderStatus), 0)
    for name, count in conn.execute(select(status, everything).where(mine).group_by(status)):
        counts[name] = count
    held = _LEASES.lease_expires_at > func.clock_timestamp()
    active = _LEASES.tenant_id == tenant, _LEASES.lease_state == LeaseState.ACTIVE.value
    leased, expired = conn.execute(
        select(everything.filter(held), everything.filter(~held)).where(*active)
    ).one()
    oldest = WorkOrderRepository(conn).list_pending(limit=1, oldest_first=True)
    return {
        "tenant_id": tenant,
        "work_orders": counts,
        "oldest_pending": {
            "work_order_id": oldest[0].work_order_id,
            "last_updated_at": oldest[0].last_updated_at,
            "seconds": _age(conn, oldest[0].last_updated_at),
        }
        if oldest
        else None,
        "active_leases": leased,
        "expired_leases": expired,
        "due_retries": len(StepAttemptRepository(conn).due_retries(_MOST_DUE)),
    }


def _age(conn: Connection, moment: Any) -> float:
    """Return the seconds since a time, by the database's clock."""
    return float(conn.scalar(select(func.extract("epoch", func.clock_timestamp() - moment))) or 0)


@click.command()
@click.argument("tenant")
@click.argument(
    "file", default="-", type=click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path)
)
@click.option("--work-order", help="Only this one.")
@click.option(
    "--keys",
    is_flag=True,
    help="Give an event without an idempotency_key one made of its id, so that an import can be run again.",
)
@url_option
@json_option
def export(tenant: str, file: Path, work_order: str | None, keys: bool, url: str, as_json: bool) -> None:
    """Write the events of TENANT into FILE, one line of JSON each, as import reads them.

    FILE is - for standard output; a name that ends in .gz is compressed. Events of leases are left out,
    because import cannot take them; it says how many.
    """
    to_output = str(file) == "-"
    if to_output and as_json:
        raise click.UsageError("--json tells of the export: name a FILE for the events")
    options: dict[str, Any] = {"work_order_id": work_order, "with_keys": keys}
    with (
        engine_on(url) as engine,
        going_on("the output is incomplete" if to_output else "nothing was written"),
        pouring() if to_output else written(file) as write,
    ):
        report = export_lines(engine, tenant, write, **options)
    if report.left_out:
        warn(f"{counted(report.left_out, 'LEASE_* event')} left out: {_OF_IMPORT}")
    warning = {} if report.events else warned_of_none(tenant, report.events)
    if as_json:
        say(to_json({**asdict(report), **warning}))
    elif not to_output:
        say(f"{click.format_filename(file)}: {counted(report.events, 'event')}")


@click.command()
@click.option(
    "--seconds", type=click.IntRange(1, 86_400), default=60, show_default=True, help="How long at most."
)
@url_option
@json_option
def wait(seconds: int, url: str, as_json: bool) -> None:
    """Wait until the database answers; exit status 3 if it does not in time.

    What the schema is like, doctor says.
    """
    begun = time.monotonic()
    while True:
        left = begun + seconds - time.monotonic()
        try:
            timeout = max(1, min(_CONNECT_SECONDS, math.ceil(left)))
            with engine_on(url, connect_timeout=timeout) as engine, engine.connect() as conn:
                version = conn.exec_driver_sql("SHOW server_version").scalar_one()
            break
        except DBAPIError as exc:
            if not is_lost(exc) or left <= _POLL_SECONDS:
                raise
        time.sleep(_POLL_SECONDS)
    waited = round(time.monotonic() - begun, 1)
    if as_json:
        say(to_json({"answers": True, "server_version": version, "seconds": waited}))
    else:
        say(f"PostgreSQL {version} answers, after {waited} s.")


OPERATIONS: Final = (list_, cancel, leases, retries, stats, export, wait)
"""What an operator asks and does."""
