"""The tutorial and the how-to guides run as they stand, and print what they say."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.integration.test_documents import ROOT, blocks
from tests.support.servers import LOGIN_ROLES, Database

DOCS = ROOT / "docs"
BETWEEN = "\x1e"


def examples(document: Path) -> list[tuple[str, str | None]]:
    """Return the blocks of Python of a document, each with what it prints where the document says so.

    The guides import what they show of examples/; the tutorial, which needs no checkout, runs it.
    """
    text = document.read_text(encoding="utf-8")
    begin = r"```python(?: examples/[^\n]*)?" if document.name == "tutorial.md" else "```python"
    found = re.findall(
        rf"^{begin}\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, flags=re.DOTALL | re.MULTILINE
    )
    return [(code, printed or None) for code, printed in found]


def check_examples_run(document: Path, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a document's blocks as one program, and compare what each prints."""
    blocks = examples(document)
    assert blocks, "the document has examples"
    program = folder / "example.py"
    program.write_text(f"\nprint({BETWEEN!r}, end='')\n".join(code for code, _ in blocks), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for (code, says), printed in zip(blocks, ran.stdout.split(BETWEEN), strict=True):
        assert printed == (says or ""), code


@pytest.mark.slow
def test_tutorial__runs(tmp_path: Path) -> None:
    check_examples_run(DOCS / "tutorial.md", tmp_path, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", ["application", "fastapi", "orm", "poolers", "retries", "upgrades", "workers"]
)
def test_guide__its_examples_run(database: Database, tmp_path: Path, guide: str) -> None:
    # Only the guide for poolers speaks of them: the others prepare statements.
    url = database.app_url if guide == "poolers" else direct_url(database)
    check_examples_run(DOCS / "howto" / f"{guide}.md", tmp_path, url_of(url))


@pytest.mark.slow
def test_guide__upgrades_by_its_commands(empty_database: Database, tmp_path: Path) -> None:
    """On a database without any revision."""
    program = Path(sys.executable).parent
    environment = {**url_of(empty_database.admin_url), "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    for name, commands in blocks(DOCS / "howto" / "upgrades.md", "sh"):
        ran = subprocess.run(
            ["/bin/sh", "-e", "-c", commands],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, (name, ran.stdout, ran.stderr)
    assert "CREATE TABLE os_core.work_order_ledger" in (tmp_path / "upgrade.sql").read_text(encoding="utf-8")


def direct_url(database: Database) -> URL:
    """Address a database as an application, past a pooler."""
    return database.server.url_for(LOGIN_ROLES["app"], database.name)


def url_of(url: URL) -> dict[str, str]:
    """Name a database as a service's environment would."""
    return {"SELENE_DATABASE_URL": url.set(drivername="postgresql").render_as_string(hide_password=False)}
