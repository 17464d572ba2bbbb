"""The command line of the soak test."""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from soak.checker.cut import check_again
from soak.place import enter_namespace
from soak.run import Options, run


def main() -> None:
    """Run the soak test, or check a saved finding again; exit 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=0, help="how long; in all with --minutes and --hours"
    )
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--hours", type=float, default=0)
    parser.add_argument("--round", type=float, default=60, metavar="SECONDS", help="between two checks")
    parser.add_argument("--kills", type=int, default=0, help="go on until so many things were ended")
    parser.add_argument("--seed", type=int, help="of the clients' and the nemesis' luck; random without")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--tenants", type=int, default=3)
    parser.add_argument(
        "--pg", type=int, help="the server's version, 15 to 18; SELENE_TEST_PG, else the newest"
    )
    parser.add_argument("--no-pooler", action="store_true", help="let nobody go through PgBouncer")
    parser.add_argument("--no-nemesis", action="store_true", help="let everybody live")
    parser.add_argument("--folder", type=Path, help="where the histories are written")
    parser.add_argument("--keep", action="store_true", help="keep the histories of rounds without findings")
    parser.add_argument("--again", type=Path, metavar="FILE", help="check a saved finding again")
    given = parser.parse_args()
    if given.again is not None:
        again = check_again(given.again)
        print("\n".join(map(str, again)) or "nothing is found")
        sys.exit(1 if again else 0)

    enter_namespace()
    seconds = given.seconds + 60 * given.minutes + 3600 * given.hours or 300
    seed = secrets.randbelow(10**9) if given.seed is None else given.seed
    version = given.pg or (int(os.environ["SELENE_TEST_PG"]) if os.environ.get("SELENE_TEST_PG") else None)
    folder = given.folder or Path(
        tempfile.gettempdir(), f"selene-soak-{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    )
    arguments = f"--seconds {seconds:g} --round {given.round:g} --seed {seed} --clients {given.clients}"
    arguments += f" --tenants {given.tenants} --kills {given.kills}" + (f" --pg {version}" if version else "")
    arguments += " --no-pooler" * given.no_pooler + " --no-nemesis" * given.no_nemesis
    figures = run(
        Options(
            seconds=seconds,
            round_seconds=given.round,
            kills=given.kills,
            seed=seed,
            clients=given.clients,
            tenants=given.tenants,
            version=version,
            pooler=not given.no_pooler,
            nemesis=not given.no_nemesis,
            folder=folder,
            keep=given.keep,
            again=f'make soak ARGS="{arguments}"',
        ),
        lambda line: print(line, flush=True),
    )
    print("\n".join(figures.lines()))
    sys.exit(1 if figures.found.total() else 0)
