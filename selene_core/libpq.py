"""The first import of the package: see that libpq is there, and keep its environment out of our connections.

Where psycopg finds no libpq, one sentence says what to install.

libpq fills in from PG* variables and service files what a connection string leaves out: PGHOSTADDR leads a
connection elsewhere although its host is named, PGREQUIREAUTH or PGTARGETSESSIONATTRS makes it fail.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

try:
    from psycopg import pq
except ImportError as exc:
    _what = 'psycopg finds no libpq: install "selene-os-core[binary]", or libpq from the system'
    # The command line cannot tell it: all of it stands behind this import.
    _named = Path(sys.argv[0]).name if sys.argv else ""
    if _named == "selene-core" or (_named == "-m" and any(a.endswith("selene_core") for a in sys.orig_argv)):
        if "--json" in sys.argv or "--json" in sys.orig_argv:
            sys.stdout.write(json.dumps({"error": {"code": "LIBPQ_MISSING", "message": _what}}) + "\n")
        sys.exit(f"selene-core: {_what}")
    raise ImportError(f"{_what} ({exc})") from exc


# What a socket of our own needs said, by parameter. No value is empty: SQLAlchemy drops such a part of a URL.
# None has a blank, which it writes as a plus. The options say what holds anyway: others may be added to them.
# For libpq the two commas are two attempts at the same socket, neither with an address.
_SAID: Final = {
    "hostaddr": ",",
    "options": "-cclient_min_messages=notice",
    "sslmode": "disable",
    "sslnegotiation": "postgres",
    "sslrootcert": "none",
    "sslcertmode": "disable",
    "ssl_min_protocol_version": "TLSv1.2",
    "ssl_max_protocol_version": "TLSv1.3",
    "gssencmode": "disable",
    "channel_binding": "disable",
    "require_auth": "none",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
    "target_session_attrs": "any",
    "load_balance_hosts": "disable",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "application_name": "selene-core",
}


def socket_parameters(folder: str, port: str, owner: str) -> dict[str, str]:
    """Return the parameters of a connection to a socket of ours, whose server runs as `owner`.

    They are more than host and port only where the environment would fill in others. What the server does not
    ask for (passwords, certificates) may come from there. So do PGTZ, PGDATESTYLE and PGGEQO, which no
    parameter replaces: they are settings of the session.
    """
    told = environment()
    all_of_them = "PGSERVICE" in told  # its section of the service file may hold any of them
    said = {**_SAID, "requirepeer": owner}
    known = {option.keyword.decode(): option.envvar for option in pq.Conninfo.get_defaults()}
    filled_in = {
        name: value
        for name, value in said.items()
        if (variable := known.get(name)) and (all_of_them or variable.decode() in told)
    }
    times = 2 if "hostaddr" in filled_in else 1
    return {"host": ",".join([folder] * times), "port": ",".join([port] * times), **filled_in}


def environment() -> Mapping[str, str]:
    """Return libpq's variables in the environment, whatever they are for."""
    return {name: value for name, value in os.environ.items() if name.startswith("PG")}
