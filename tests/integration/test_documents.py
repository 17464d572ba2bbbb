"""What the documents say is so: their statements and commands are run as they stand."""

import re
from pathlib import Path

import pytest

from tests.migrations.runs import psql
from tests.support.catalogue_rules import PUBLIC_FUNCTIONS
from tests.support.servers import Database

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = ROOT / "docs" / "sql-interface.md"
REPOSITORY = re.compile(
    r"\]\(https://(?:github\.com/OWNER/selene-core/blob|raw\.githubusercontent\.com/OWNER/selene-core)/main/"
)
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md"))
)


def blocks(document: Path, language: str) -> list[tuple[str, str]]:
    """Return the fenced blocks of a language, each with what else stands in its first line."""
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language} ?(.*?)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def guides_block(name: str, language: str) -> str:
    """Return the block of this name in the how-to guides."""
    guides = (ROOT / "docs" / "howto").glob("*.md")
    (found,) = [text for guide in guides for called, text in blocks(guide, language) if called == name]
    return found


def test_guides__every_command_and_statement_is_run_by_name() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    # The guide for upgrades is run from its first command to its last.
    for guide in {*(ROOT / "docs" / "howto").glob("*.md")} - {ROOT / "docs" / "howto" / "upgrades.md"}:
        for language in ("sql", "psql", "sh", "python"):
            for name, text in blocks(guide, language):
                assert name or language == "python", text
                shown = name.startswith("examples/")  # its file is run: tests/unit/test_example_code.py
                assert not name or shown or re.search(f"['\"]{name}['\"]", tests), (guide, name)


def test_sql_interface__every_example_runs(database: Database) -> None:
    examples = blocks(INTERFACE, "sql")
    assert len(examples) > 8
    for outcome, statements in examples:
        ran = psql(database, f"\\set VERBOSITY verbose\n{statements}", database.app_url)
        if outcome:
            assert f"ERROR:  {outcome}: " in ran.stderr, statements
        else:
            assert ran.returncode == 0, (statements, ran.stderr)


def test_sql_interface__a_retry_is_a_replay(database: Database) -> None:
    first = blocks(INTERFACE, "sql")[0][1]
    told = [psql(database, f"\\pset tuples_only\n{first}", database.app_url).stdout for _ in range(2)]
    assert [answer.split() for answer in told] == [["1", "|", "f"], ["1", "|", "t"]]


@pytest.mark.parametrize("signature", PUBLIC_FUNCTIONS)
def test_sql_interface__describes_every_public_function(signature: str) -> None:
    """With a section of its own, its parameters, and an example that calls it."""
    name, types = signature.removesuffix(")").split("(")
    text = INTERFACE.read_text(encoding="utf-8")
    assert f"\n## {name}\n" in text, f"docs/sql-interface.md has no section {name}"
    section = text.split(f"\n## {name}\n", 1)[1].split("\n## ", 1)[0]
    written = re.search(rf"^{re.escape(name)}\((.*?)\)\s*→", section, flags=re.DOTALL | re.MULTILINE)
    assert written, f"{name}: no signature"
    short = {"timestamp with time zone": "timestamptz"}
    described = [part.split(" DEFAULT ")[0].split()[1] for part in written[1].split(",")]
    assert described == [short.get(each, each) for each in types.split(",")]
    assert any(f"{name}(" in statements for _, statements in blocks(INTERFACE, "sql"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links__lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = REPOSITORY.sub(f"]({ROOT}/", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            other = (path.parent / file).resolve() if file else path
            assert other.exists(), target
            if anchor:
                assert anchor in anchors(other), target


def anchors(document: Path) -> set[str]:
    """Return the names by which a document's headings can be linked to."""
    text = document.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a name="([^"]+)"', text))
