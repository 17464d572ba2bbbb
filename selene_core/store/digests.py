"""The type of every column that holds a hash as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import LargeBinary, Text, func, literal_column, type_coerce
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Dialect

_HEX: Final[ColumnElement[str]] = literal_column("'hex'", Text)


class Digest(TypeDecorator[str]):
    """A bytea, read as hexadecimal digits: bytes are no JSON, and a host answers with our rows.

    The server sends the digits. A bytea inside JSON would depend on the session's bytea_output.
    """

    impl = LargeBinary
    cache_ok = True

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Select digits, which no setting changes."""
        return type_coerce(func.encode(column, _HEX), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Take the digits as they come."""
