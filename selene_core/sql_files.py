"""Find the revisions and their SQL, in a checkout or inside the wheel (contract §13)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

# Exactly what text() takes for a bind parameter: in [\:space:] it would leave the backslash.
_BIND: Final = re.compile(r"(?<![:\w\\])(:\w+)(?![:\w])")


def script_directory() -> Path:
    """Return the folder of the revisions: inside the installed package, else the checkout's."""
    package = Path(__file__).parent
    installed = package / "_alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


def read_sql(name: str, *, version: int, **parameters: object) -> str:
    """Return the text of alembic/sql/<name>_v<version>.sql, with each {{parameter}} filled in.

    `name` includes the folder: `append/same_content`.
    """
    body = (script_directory() / "sql" / f"{name}_v{version:02}.sql").read_text(encoding="utf-8")
    for key, value in parameters.items():
        body = body.replace("{{" + key + "}}", str(value))
    return body


def sql(name: str, *, version: int, **parameters: object) -> str:
    r"""Return the same text with `:name` escaped: op.execute() would take it for a bind parameter."""
    return _BIND.sub(r"\\\1", read_sql(name, version=version, **parameters))
