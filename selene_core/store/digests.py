"""The type of every column that holds a hash as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class Digest(TypeDecorator[str]):
    """A bytea, read as hexadecimal digits: bytes are no JSON, and a host answers with our rows."""

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Convert bytes to digits."""
        return None if value is None else bytes(value).hex()
