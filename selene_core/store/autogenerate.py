"""Keep the Alembic of an application that shares the database away from our tables. In its env.py:

from selene_core.store.autogenerate import include_name, include_object

context.configure(..., include_schemas=True, include_name=include_name, include_object=include_object)
"""

from collections.abc import MutableMapping
from typing import Any, Final

from selene_core.store.tables import METADATA

SCHEMAS: Final = frozenset(table.schema for table in METADATA.tables.values())
"""The schemas that this package owns with all that is in them, its version table too."""


def include_name(name: str | None, type_: str, parent_names: MutableMapping[Any, Any]) -> bool:
    """Keep `alembic revision --autogenerate` and `alembic check` from reading our schemas.

    Otherwise, with include_schemas=True, they would drop every table that the host's metadata lacks.
    """
    schema = name if type_ == "schema" else parent_names.get("schema_name")
    return schema not in SCHEMAS


def include_object(
    object_: Any, _name: str | None, _type: str, _reflected: bool, _compare_to: Any | None
) -> bool:
    """Leave out our tables in the host's metadata, such as one that a foreign key of the host refers to."""
    return getattr(object_, "table", object_).schema not in SCHEMAS
