"""The type of every timestamptz column: read in UTC, whatever the session's settings."""

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

    The server sends microseconds since 1970. A text would depend on the session's TimeZone and DateStyle: the
    driver may not know them, and the last hours of 9999 may be in the year 10000 there.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Select microseconds, which no setting changes."""
        return type_coerce(cast(extract("epoch", column) * _MICROSECONDS, BigInteger), self)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Convert microseconds to a datetime."""
        return None if value is None else instant(value)


def instant(microseconds: int) -> datetime:
    """Return the time so many microseconds after the beginning of 1970."""
    return _EPOCH + timedelta(microseconds=microseconds)
