"""A host's own Alembic beside ours: what its autogenerate compares, and what it leaves to us."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from selene_core import include_name, include_object
from selene_core.store.tables import METADATA
from tests.integration.test_documents import guides_block
from tests.migrations.runs import alembic_env
from tests.support.servers import Database

pytestmark = pytest.mark.slow

ENV = """
from alembic import context
from sqlalchemy import create_engine
from host import metadata, configuration

with create_engine(context.config.get_main_option("sqlalchemy.url")).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, **configuration)
    with context.begin_transaction():
        context.run_migrations()
"""
MAKO = '''"""${message}"""
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = depends_on = None
from alembic import op
import sqlalchemy as sa
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
'''
# Tables that are called as ours are, one with a key to ours, one in a schema of the host's own.
HOST = """
import sqlalchemy as sa
from selene_core import include_name, include_object
from selene_core.store.tables import METADATA, work_orders_current

metadata = sa.MetaData()
{ours}
sa.Table("sessions", metadata, sa.Column("id", sa.Text, primary_key=True), sa.Index("ix_sessions_id", "id"))
sa.Table(
    "bookings",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("work_order_id", sa.Text, nullable=False),
    *([sa.ForeignKeyConstraint(["tenant_id", "work_order_id"], [{key}], name="fk_order")] if [{key}] else []),
    schema="booking",
)
configuration = {configuration}
"""
SETTINGS = "{'include_schemas': True, 'include_name': include_name, 'include_object': include_object}"
BY_COLUMNS = "work_orders_current.c.tenant_id, work_orders_current.c.work_order_id"
BY_NAMES = "'os_core.work_orders_current.tenant_id', 'os_core.work_orders_current.work_order_id'"
ALL_OF_OURS = "for table in METADATA.tables.values(): table.to_metadata(metadata)"
HOSTS = {
    "without a key to ours": ("", ""),
    "with a key to ours": ("", BY_COLUMNS),
    "with all of ours in its metadata": (ALL_OF_OURS, BY_NAMES),
}


class Host:
    """An application with an Alembic environment of its own."""

    def __init__(self, folder: Path, url: sa.URL, kind: str, configuration: str = SETTINGS) -> None:
        self.folder = folder
        (folder / "versions").mkdir()
        (folder / "env.py").write_text(ENV, encoding="utf-8")
        (folder / "script.py.mako").write_text(MAKO, encoding="utf-8")
        ours, key = HOSTS[kind]
        host = HOST.format(ours=ours, key=key, configuration=configuration)
        (folder / "host.py").write_text(host, encoding="utf-8")
        address = url.render_as_string(hide_password=False).replace("%", "%%")
        (folder / "alembic.ini").write_text(
            f"[alembic]\nscript_location = {folder}\nprepend_sys_path = {folder}\npath_separator = os\n"
            f"sqlalchemy.url = {address}\n",
            encoding="utf-8",
        )

    def alembic(self, *arguments: str) -> str:
        """Run the command as the host does, and return what it says."""
        ran = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            env=alembic_env(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def generated(self, name: str) -> str:
        """Let it write a revision, and return that."""
        self.alembic("revision", "--autogenerate", "-m", name)
        (written,) = (self.folder / "versions").glob(f"*_{name}.py")
        return written.read_text(encoding="utf-8")


@pytest.fixture
def schema(admin_engine: sa.Engine) -> None:
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("CREATE SCHEMA booking")


@pytest.mark.usefixtures("schema")
@pytest.mark.parametrize("kind", HOSTS)
def test_host__writes_revisions_of_its_own_tables_alone(
    database: Database, tmp_path: Path, kind: str
) -> None:
    host = Host(tmp_path, database.admin_url, kind)
    first, _, undone = host.generated("first").partition("def downgrade")
    assert (first.count("op.create_table("), undone.count("op.drop_table(")) == (2, 2)
    assert "op.drop_" not in first
    host.alembic("upgrade", "head")
    host.alembic("check")
    assert "op." not in host.generated("second").partition("def upgrade")[2]
    host.alembic("upgrade", "head")
    host.alembic("downgrade", "base")


@pytest.mark.usefixtures("schema")
def test_host__as_in_the_guide(database: Database, tmp_path: Path) -> None:
    """Its env.py and its foreign key."""
    host = Host(tmp_path, database.admin_url, "without a key to ours")
    env = f"{guides_block('foreign-key', 'python')}\n{guides_block('env', 'python')}"
    (tmp_path / "env.py").write_text(
        "from alembic import context\nfrom sqlalchemy import create_engine\nfrom host import metadata\n"
        'engine = create_engine(context.config.get_main_option("sqlalchemy.url"))\n'
        f"connection = engine.connect()\n{env}\n"
        "with context.begin_transaction():\n    context.run_migrations()\nconnection.commit()\n",
        encoding="utf-8",
    )
    first = host.generated("first").partition("def downgrade")[0]
    assert first.count("op.create_table(") == 2
    assert "op.drop_" not in first


@pytest.mark.usefixtures("schema")
def test_host__without_them_would_drop_all_that_is_ours(database: Database, tmp_path: Path) -> None:
    """What the two are for."""
    host = Host(tmp_path, database.admin_url, "without a key to ours", "{'include_schemas': True}")
    upgrade = host.generated("first").partition("def downgrade")[0]
    assert upgrade.count("op.drop_table(") == len(METADATA.tables) + 1


def differences(database: Database, metadata: sa.MetaData, **options: Any) -> list[Any]:
    with database.engine("admin").connect() as conn:
        return list(compare_metadata(MigrationContext.configure(conn, opts=options), metadata))


@pytest.mark.parametrize("include_schemas", [True, False])
def test_compare__finds_nothing_where_the_host_has_nothing(database: Database, include_schemas: bool) -> None:
    assert (
        differences(database, sa.MetaData(), include_schemas=include_schemas, include_name=include_name) == []
    )


def test_compare__leaves_ours_alone_where_the_hosts_metadata_has_them(
    database: Database, admin_engine: sa.Engine
) -> None:
    """Even where they differ: columns, indexes and constraints of ours are ours to change."""
    metadata = sa.MetaData()
    for table in METADATA.tables.values():
        table.to_metadata(metadata).append_column(sa.Column("of_the_hosts", sa.Text))
    options = {"include_schemas": True, "include_object": include_object}
    assert differences(database, metadata, **options) == []
    assert differences(database, metadata, **options, include_name=include_name) == []
    with admin_engine.begin() as conn:
        conn.exec_driver_sql("CREATE INDEX ix_of_the_hosts ON os_core.work_orders_current (tenant_id)")
    assert differences(database, metadata, **options, include_name=include_name) == []


@pytest.mark.parametrize("schema", [None, "public", "booking", "os_core_of_the_host"])
def test_include_name__keeps_what_is_the_hosts(schema: str | None) -> None:
    assert include_name(schema, "schema", {})
    assert include_name("sessions", "table", {"schema_name": schema})
    assert include_object(sa.Table("sessions", sa.MetaData(), schema=schema), "sessions", "table", True, None)
