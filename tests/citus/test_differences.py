"""The list of what differs on a cluster names tests that exist, and the guide shows it: no cluster needed."""

import re

import tests.acceptance.test_every_table as every_table
import tests.acceptance.test_os_core_db as os_core_db
from tests.citus.differences import DIFFERENCES
from tests.integration.test_documents import ROOT


def test_differences__name_acceptance_tests() -> None:
    for each in DIFFERENCES:
        assert hasattr(every_table, each.test) or hasattr(os_core_db, each.test), each.test


def test_guide__lists_the_differences() -> None:
    guide = (ROOT / "docs" / "howto" / "citus.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(test_\w+)` \| (.+) \|$", guide, re.MULTILINE)
    assert rows == [(each.test, each.what) for each in DIFFERENCES]
