"""One more revision after the newest, as the next version of the library would bring it."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent, indent

from alembic import command

from selene_core.drift import golden
from selene_core.migrations import config, script_directory
from tests.servers import Database

NEXT = "next"


def upgrade_further(database: Database, body: str) -> None:
    """Upgrade a database that stands at head by a revision with this body."""
    with TemporaryDirectory() as folder:
        scripts = Path(folder, "alembic")
        shutil.copytree(script_directory(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
        (scripts / "versions" / "next_scratch.py").write_text(
            "from alembic import op\nfrom selene_core.migrations import sql\n"
            f'revision = "{NEXT}"\ndown_revision = "{golden().head}"\nbranch_labels = depends_on = None\n'
            f"def upgrade() -> None:\n{indent(dedent(body), '    ')}\n",
            encoding="utf-8",
        )
        configuration = config(database.admin_url)
        configuration.set_main_option("script_location", str(scripts).replace("%", "%%"))
        command.upgrade(configuration, NEXT)
