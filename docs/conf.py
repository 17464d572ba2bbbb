"""The site: sphinx-build -W --keep-going -b html docs build/site."""

import os
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "selene-core"
author = "the selene-core authors"
project_copyright = "the selene-core authors"
release = version = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx", "reference"]
exclude_patterns = ["_ext"]
html_theme = "furo"
html_title = "selene-core"

# Links to headings are those that GitHub makes.
myst_heading_anchors = 4

smartquotes = False  # an option is --json, with two hyphens

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True

# Links to other projects need the network: SELENE_SITE_INTERSPHINX=1 asks for them.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "sqlalchemy": ("https://docs.sqlalchemy.org/en/20", None),
    }
    if os.environ.get("SELENE_SITE_INTERSPHINX") == "1"
    else {}
)
