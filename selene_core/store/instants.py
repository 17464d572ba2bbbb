"""The type of every column of time, read so that no setting of the session has a say in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, DateTime, cast, extract, literal_column, type_coerce
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Dialect

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS: Final[ColumnElement[int]] = literal_column("1000000", BigInteger)


class Instant(TypeDecorator[datetime]):
    """A timestamptz, read as a datetime in UTC.

    It comes as microseconds since 1970: as text it would be in the session's TimeZone and DateStyle, which
    the driver need not know, and where the last hours of the year 9999 may lie in the year 10000.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Ask the server for microseconds, which no setting changes."""
        return type_coerce(cast(extract("epoch", column) * _MICROSECONDS, BigInteger), self)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return the datetime of so many microseconds."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)
