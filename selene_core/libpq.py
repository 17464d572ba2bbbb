"""The first import of the package: where psycopg finds no libpq, one sentence says what to install."""

import json
import sys
from pathlib import Path

try:
    import psycopg  # noqa: F401 - to see whether it can be imported
except ImportError as exc:
    _what = 'psycopg finds no libpq: install "selene-core[binary]", or libpq from the packages of the system'
    # The command line cannot tell it: all of it stands behind this import.
    _named = Path(sys.argv[0]).name if sys.argv else ""
    if _named == "selene-core" or (_named == "-m" and any(a.endswith("selene_core") for a in sys.orig_argv)):
        if "--json" in sys.argv or "--json" in sys.orig_argv:
            sys.stdout.write(json.dumps({"error": {"code": "LIBPQ_MISSING", "message": _what}}) + "\n")
        sys.exit(f"selene-core: {_what}")
    raise ImportError(f"{_what} ({exc})") from exc
