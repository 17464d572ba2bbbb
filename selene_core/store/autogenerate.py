"""For the Alembic environment of an application that shares the database: what it leaves to this package.

from selene_core.store.autogenerate import include_name, include_object

context.configure(..., include_schemas=True, include_name=include_name, include_object=include_object)
"""

from collections.abc import MutableMapping
from typing import Any, Final

from selene_core.store.tables import METADATA

SCHEMAS: Final = frozenset(table.schema for table in METADATA.tables.values())
"""The schemas that this package owns with all that is in them, its version table too."""


def include_name(name: str | None, type_: str, parent_names: MutableMapping[Any, Any]) -> bool:
    """Tell `alembic revision --autogenerate` and `alembic check` not to look into our schemas.

    Without it, and with include_schemas=True, they would drop every table that is not in the host's metadata.
    """
    schema = name if type_ == "schema" else parent_names.get("schema_name")
    return schema not in SCHEMAS


def include_object(
    object_: Any, _name: str | None, _type: str, _reflected: bool, _compare_to: Any | None
) -> bool:
    """Tell the same of what stands in the host's metadata, such as a table of ours that a key refers to."""
    return getattr(object_, "table", object_).schema not in SCHEMAS
