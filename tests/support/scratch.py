"""More revisions after the newest, as the next version of the library would bring them."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent, indent

from alembic import command

from selene_core.migrations import config
from selene_core.schema.drift import expected_schema
from selene_core.sql_files import script_directory
from tests.support.servers import Database

NEXT = "next"


def upgrade_further(database: Database, *bodies: str) -> None:
    """Upgrade a database that stands at head by a revision with each of these bodies; the last is NEXT."""
    revisions = [expected_schema().head, *(f"scratch_{number}" for number in range(1, len(bodies))), NEXT]
    with TemporaryDirectory() as folder:
        scripts = Path(folder, "alembic")
        shutil.copytree(script_directory(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
        for before, revision, body in zip(revisions, revisions[1:], bodies, strict=False):
            (scripts / "versions" / f"{revision}.py").write_text(
                "from alembic import op\nfrom selene_core.sql_files import sql\n"
                f'revision = "{revision}"\ndown_revision = "{before}"\nbranch_labels = depends_on = None\n'
                f"def upgrade() -> None:\n{indent(dedent(body), '    ')}\n",
                encoding="utf-8",
            )
        configuration = config(database.admin_url)
        configuration.set_main_option("script_location", str(scripts).replace("%", "%%"))
        command.upgrade(configuration, NEXT)
