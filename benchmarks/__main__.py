"""Run the benchmarks on an embedded server with default settings: python -m benchmarks [append-1 …]."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from sqlalchemy import make_url

from benchmarks.databases import databases
from benchmarks.report import document, machine, table
from benchmarks.scale import FULL, LONG
from benchmarks.suite import SUITE
from selene_core.local import local_server


def main() -> None:
    """Run what the command line names, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one of {', '.join(SUITE)}; without any, all"
    )
    parser.add_argument("--long", action="store_true", help="let growth go on to 100,000 orders")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SUITE):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")

    version = os.environ.get("SELENE_TEST_PG")
    results = []
    with local_server(version=int(version) if version else None, durable=True) as server:
        with server.connect() as conn:
            release = conn.info.parameter_status("server_version")
        with databases(make_url(server.admin_url)) as places:
            for name in options.names or SUITE:
                start = time.monotonic()
                results += SUITE[name](places, LONG if options.long else FULL)
                print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    about = f"PostgreSQL {release}, default settings"
    if options.json:
        print(json.dumps(document(about, results), indent=2))
    else:
        print(f"{about}; {machine()}.")
        print("Medians; the ratio says how many times faster (memory: smaller) ours is.\n")
        print(table(results))


if __name__ == "__main__":
    main()
