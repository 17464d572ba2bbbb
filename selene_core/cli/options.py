"""The options and arguments of the commands that use a database."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from selene_core.contract.errors import ContractViolation, WorkOrderNotFound
from selene_core.contract.rules import EVENT_RULES
from selene_core.store.engines import create_selene_engine, psycopg_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from selene_core.contract.rows import WorkOrder
    from selene_core.store.work_orders import WorkOrderRepository

_Command = TypeVar("_Command", bound="Callable[..., Any]")

limit_option = click.option("--limit", type=click.IntRange(1, 999), default=20, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value, for machines.")


def _readable(_context: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    if url is not None:
        try:
            psycopg_url(url)
        except (TypeError, ValueError) as exc:
            raise click.UsageError(str(exc)) from exc
    return url


def _url_option(*, required: bool) -> Callable[[_Command], _Command]:
    return click.option(
        "--url",
        metavar="URL",
        envvar="SELENE_DATABASE_URL",
        show_envvar=True,
        required=required,
        callback=_readable,
        help="The database; it may have several hosts.",
    )


url_option = _url_option(required=True)
optional_url_option = _url_option(required=False)


def moment(_context: click.Context, option: click.Parameter, value: str | None) -> datetime | None:
    """Read an option's time by the contract's rule: RFC 3339 with an offset."""
    if value is None:
        return None
    try:
        read: datetime = EVENT_RULES["occurred_at"].check(option.name or "time", value)
    except ContractViolation as exc:
        raise click.BadParameter(str(exc.rule)) from exc
    return read


@contextmanager
def engine_on(url: str, **connect_args: int) -> Iterator[Engine]:
    """Connect on demand, and close what was opened."""
    # As behind a pooler, which the URL does not tell: a command gains nothing from prepared statements.
    engine = create_selene_engine(url, pooler=True, connect_args=connect_args)
    try:
        yield engine
    finally:
        engine.dispose()


def required(orders: WorkOrderRepository, work_order: str) -> WorkOrder:
    """Return the work order that an argument names; raises WorkOrderNotFound."""
    if (found := orders.get(work_order)) is None:
        raise WorkOrderNotFound(f"work order {work_order} does not exist", work_order_id=work_order)
    return found
