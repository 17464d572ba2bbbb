"""Write selene_core/catalogue.txt anew, after a change of the schema that is meant; then read the difference.

python -m tests.catalogue
"""

from contextlib import ExitStack

import sqlalchemy as sa
from alembic.script import ScriptDirectory

from selene_core.catalogue import read, render
from selene_core.drift import GOLDEN, render_golden
from selene_core.migrations import config, upgrade
from tests.servers import open_server

__all__ = ["GOLDEN", "catalogue", "golden_text"]


def catalogue(conn: sa.Connection) -> str:
    """Describe the roles and everything in os_core and conversation, one fact a line."""
    with conn.begin():
        return render(read(conn))


def golden_text(conn: sa.Connection) -> str:
    """Describe a database at the newest revision as the golden file does."""
    revisions = [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()]
    with conn.begin():
        return render_golden(tuple(revisions[::-1]), read(conn))


def _main() -> None:
    with ExitStack() as stack:
        server = open_server(stack)
        with server.new_database("catalogue") as database:
            upgrade(database.admin_url)
            with database.engine("admin").connect() as conn:
                GOLDEN.write_text(golden_text(conn), encoding="utf-8")


if __name__ == "__main__":
    _main()
