"""What comments and documents refer to exists: sections of the contract, and files of the checkout."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("alembic", "benchmarks", "docs", "examples", "pictures", "selene_core", "soak", "tests")
TEXTS = {".ini", ".md", ".mako", ".py", ".sql", ".toml", ".txt", ".yml"}
SECTION = re.compile(r"contract (?:§|sections? )(\d+)(?:(?:, §?|,? and §?|,? to §?)(\d+))*")
FILE = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w\.(?:json|md|mako|py|sql|svg|txt)\b")


def texts() -> Iterator[tuple[Path, str]]:
    """Read every text file of the checkout."""
    for path in (*ROOT.glob("*"), *(file for folder in FOLDERS for file in (ROOT / folder).glob("**/*"))):
        if path.is_file() and path.suffix in TEXTS and path != Path(__file__):
            yield path, path.read_text(encoding="utf-8")


def test_references__lead_to_sections_of_the_contract() -> None:
    contract = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\. ", contract, flags=re.MULTILINE))
    named = {
        (str(path.relative_to(ROOT)), number)
        for path, text in texts()
        for reference in SECTION.finditer(text)
        for number in re.findall(r"\d+", reference[0])
    }
    assert len(named) > 50
    assert {(path, number) for path, number in named if number not in sections} == set()


def test_references__lead_to_files() -> None:
    missing = {
        (str(path.relative_to(ROOT)), name)
        for path, text in texts()
        for name in FILE.findall(text)
        if not any(ROOT.glob(name))
    }
    assert missing == set()


def test_architecture__names_every_room() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for folder, written in (("selene_core", "`selene_core/{}/`"), ("alembic/sql", "`{}`")):
        rooms = {path.parent.name for path in (ROOT / folder).glob("*/*") if path.suffix in {".py", ".sql"}}
        assert len(rooms) > 5
        assert {room for room in rooms if written.format(room) not in architecture} == set()
