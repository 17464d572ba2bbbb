"""Write the code of examples/ into the pages that show it: python docs/_ext/example_code.py.

A page shows a section of a file in a block that begins with ```python and the section's name, as in
```python examples/service/app.py: errors. In the file, a comment begins the section: # --- errors
"""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
BLOCK: Final = re.compile(
    r"^```python (?P<file>examples/\S+\.py): (?P<section>.+)\n(?:.*\n)*?```$", re.MULTILINE
)


def sections(file: str) -> dict[str, str]:
    """Return the sections of a file of the checkout by name."""
    parts = re.split(r"^# --- (.+)\n", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: f"{code.strip()}\n" for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def with_code(page: str) -> str:
    """Return the text of a page with the code as it is now; raises KeyError if there is no such section."""

    def block(shown: re.Match[str]) -> str:
        code = sections(shown["file"])[shown["section"]]
        return f"```python {shown['file']}: {shown['section']}\n{code}```"

    return BLOCK.sub(block, page)


if __name__ == "__main__":
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        path.write_text(with_code(text), encoding="utf-8")
