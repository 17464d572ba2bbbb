"""Check that libpq is installed, and keep its environment variables out of our connections.

The package imports this before what needs libpq: without libpq, one sentence says what to install.

libpq takes what a connection string leaves out from PG* variables and service files. PGHOSTADDR leads to
another server even if the host is given; PGREQUIREAUTH and PGTARGETSESSIONATTRS make a connection fail.
"""

import os
import sys
from collections.abc import Mapping
from typing import Final

from selene_core.command import IS_COMMAND, tell_failure

try:
    from psycopg import pq
except ImportError as exc:
    _what = 'psycopg finds no libpq: install "selene-os-core[binary]", or libpq from the system'
    if IS_COMMAND:
        tell_failure("LIBPQ_MISSING", _what)
        sys.exit(1)
    raise ImportError(f"{_what} ({exc})") from exc


# The parameters of a connection to a socket of ours. No value is empty, because SQLAlchemy drops an empty
# part of a URL; none has a blank, which it writes as a plus. The options set a default, so others can be
# added. A comma as hostaddr means two hosts without an address: socket_parameters() names the socket twice.
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

    Besides host and port, it returns only those that the environment would set. Passwords and certificates
    may come from the environment: the server does not ask for them. So may PGTZ, PGDATESTYLE and PGGEQO: they
    are settings of the session, and no parameter replaces them.
    """
    told = environment()
    all_of_them = "PGSERVICE" in told  # the service file may set any of them
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
    """Return all PG* variables of the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("PG")}
