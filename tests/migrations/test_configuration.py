"""Where a migration finds its database and its revisions, and what it leaves alone (contract §13)."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from selene_core.migrations import (
    MigrationRefused,
    config,
    configured_url,
    script,
    upgrade,
)
from selene_core.sql_files import read_sql, script_directory, sql
from tests.migrations.runs import REVISIONS, ROOT, alembic_apart, alembic_env, catalogue_of, stands_at
from tests.support.servers import Database


def test_upgrade__version_table_is_in_os_core(database: Database) -> None:
    where = sa.text("SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'")
    with database.engine("admin").connect() as conn:
        assert conn.scalars(where).all() == ["os_core"]
    assert stands_at(database) == REVISIONS[-1]


def test_upgrade__again_changes_nothing(database: Database, catalogue_at: Callable[[str], str]) -> None:
    same = sa.text(
        "SELECT oid, xmin::text FROM pg_class WHERE relnamespace = 'os_core'::regnamespace ORDER BY 1"
    )
    with database.engine("admin").connect() as conn:
        before = conn.execute(same).all()
        upgrade(database.admin_url)
        assert conn.execute(same).all() == before
    assert catalogue_of(database) == catalogue_at("head")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_command__scheme_of_the_url(
    empty_database: Database, catalogue_at: Callable[[str], str], scheme: str
) -> None:
    url = empty_database.admin_url.set(drivername=scheme)
    done = alembic_apart(url, "upgrade", "head")
    assert done.returncode == 0, done.stdout
    assert catalogue_of(empty_database) == catalogue_at("head")


@pytest.mark.parametrize("given", ["as a URL", "as text", "in the environment"])
def test_upgrade__percent_in_the_password(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    password = "50%sure%%(here)s @:/?#"
    url = empty_database.admin_url.set(password=password)
    text = url.render_as_string(hide_password=False)
    monkeypatch.setenv(
        "SELENE_DATABASE_URL", text if given == "in the environment" else "postgresql://no/one"
    )
    target = {"as a URL": url, "as text": text, "in the environment": None}[given]
    assert configured_url(config(target)).password == password
    # Where the server asks for no password, that it came through is all there is to see.
    if empty_database.server.kind == "embedded":
        upgrade(target)
        assert stands_at(empty_database) == REVISIONS[-1]


@pytest.mark.slow
def test_command__no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = alembic_apart(None, "upgrade", "head")
    assert refused.returncode != 0
    assert "FAILED: SELENE_DATABASE_URL is not set" in refused.stdout
    assert "Traceback" not in refused.stdout
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("SELENE_DATABASE_URL", raising=False)
        else:
            monkeypatch.setenv("SELENE_DATABASE_URL", value)
        with pytest.raises(MigrationRefused, match="SELENE_DATABASE_URL is not set"):
            upgrade()


@pytest.mark.slow
def test_command__from_another_folder(empty_database: Database, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", ROOT / "alembic.ini", "upgrade", "head"],
        env=alembic_env(empty_database.admin_url),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert stands_at(empty_database) == REVISIONS[-1]


@pytest.mark.slow
def test_upgrade__from_an_installed_package(
    empty_database: Database, catalogue_at: Callable[[str], str], tmp_path: Path
) -> None:
    """A wheel holds the revisions inside the package; its folder may have a % in its name."""
    site = tmp_path / "100% site"
    shutil.copytree(ROOT / "selene_core", site / "selene_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(script_directory(), site / "selene_core" / "_alembic")
    program = """
        from selene_core import migrations
        migrations.upgrade()
        print(migrations.script_directory())
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in program.splitlines())],
        env=alembic_env(empty_database.admin_url, PYTHONPATH=str(site)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == site / "selene_core" / "_alembic"
    assert catalogue_of(empty_database) == catalogue_at("head")


def test_upgrade__leaves_the_hosts_logging_alone(empty_database: Database) -> None:
    mine = logging.getLogger("the.hosts.own")
    before = (logging.root.level, list(logging.root.handlers), mine.disabled)
    upgrade(empty_database.admin_url)
    assert (logging.root.level, list(logging.root.handlers), mine.disabled) == before


def name_and_version(file: Path) -> tuple[str, str]:
    name, version = file.stem.rsplit("_v", 1)
    return f"{file.parent.name}/{name}", version


def test_sql__is_executed_as_it_is_written() -> None:
    """No colon in a body is taken for a bind parameter, and none is left escaped."""
    as_in_scripts = sa.create_engine("postgresql+psycopg://", paramstyle="named").dialect
    for file in (script_directory() / "sql").rglob("*.sql"):
        name, version = name_and_version(file)
        statement = sa.text(sql(name, version=int(version))).compile(dialect=as_in_scripts)
        assert statement.params == {}, file.name
        assert str(statement) == read_sql(name, version=int(version)), file.name


def test_sql__is_ascii() -> None:
    """A script goes through files and clients of any encoding, and must make the same bodies."""
    texts = {file: file.read_text(encoding="utf-8") for file in (script_directory() / "sql").rglob("*.sql")}
    assert [file.name for file, text in texts.items() if not text.isascii()] == []
    assert script().isascii()


def test_revisions__are_one_line_and_lose_none_of_the_sql() -> None:
    """Every file in alembic/sql is used, by a revision or by what runs before every one."""
    scripts = ScriptDirectory.from_config(config())
    assert scripts.get_heads() == [REVISIONS[-1]]
    sources = [*(script_directory() / "versions").glob("*.py"), script_directory() / "env.py"]
    sources += (ROOT / "selene_core" / "migrations").glob("*.py")
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    for file in (script_directory() / "sql").rglob("*.sql"):
        name = name_and_version(file)[0]
        called = f'sql("{name}", version=' in text.replace("\n", "").replace('sql(                "', 'sql("')
        # A revision with many names them in a list.
        assert called or f'\n    "{name}",\n' in text, file.name
