"""Two directives for the reference: public-names (selene_core.__all__ by kind) and command-line (from click).

Neither holds a list: what is public, and which commands there are, the package says.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
from docutils import nodes
from docutils.statemachine import StringList
from pydantic import BaseModel
from pygments.lexers.sql import PostgresLexer
from sphinx.util.docutils import SphinxDirective

import selene_core
from selene_core.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

CONTRACT = Path(__file__).resolve().parents[1] / "contract.md"


def kind_of(name: str) -> str:
    """Return the group in which a public name is described."""
    value = getattr(selene_core, name)
    if not isinstance(value, type):
        return "functions" if callable(value) else "constants"
    for kind, belongs in (
        ("errors", issubclass(value, Exception)),
        ("enums", issubclass(value, enum.Enum)),
        ("events", issubclass(value, BaseModel)),
        ("async-repositories", name.startswith("Async")),
        ("repositories", name.endswith(("Repository", "Feed", "FeedBatch"))),
        ("rows", dataclasses.is_dataclass(value) or issubclass(value, tuple)),
    ):
        if belongs:
            return kind
    raise ValueError(f"the Python reference has no group for {name}")


class PublicNames(SphinxDirective):
    """Describe the public names of one kind by autodoc, under the name by which they are imported."""

    required_arguments = 1
    _directives: ClassVar[dict[str, tuple[str, ...]]] = {
        "functions": ("autofunction",),
        "constants": ("autodata",),
        "errors": ("autoexception",),
        "enums": ("autoclass", ":members:", ":undoc-members:"),
        "events": ("autoclass", ":members: from_mapping, to_wire, model_copy"),
        "async-repositories": ("autoclass",),
        "repositories": ("autoclass", ":members:"),
        "rows": ("autoclass", ":members:", ":exclude-members: count, index"),
    }

    def run(self) -> list[nodes.Node]:
        """Return what autodoc makes of each."""
        kind = self.arguments[0]
        directive, *options = self._directives[kind]
        lines: list[str] = []
        for name in sorted(selene_core.__all__):
            if kind_of(name) == kind:
                lines += [f".. {directive}:: selene_core.{name}", *(f"   {option}" for option in options), ""]
        return self.parse_text_to_nodes(StringList(lines, source=__file__))


class CommandLine(SphinxDirective):
    """Describe each command by what click knows of it."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each command."""
        group = click.Context(cli, info_name="selene-core")
        return [self._section(context) for context in _commands(group, cli)]

    def _section(self, context: click.Context) -> nodes.section:
        command = context.command
        section = nodes.section(ids=[nodes.make_id(context.command_path)])
        section += nodes.title(text=context.command_path)
        section += nodes.literal_block(
            text=" ".join([context.command_path, *command.collect_usage_pieces(context)])
        )
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            section += nodes.paragraph(text=" ".join(paragraph.split()))
        options = nodes.definition_list()
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None and record[1]:
                term = nodes.term("", "", nodes.literal(text=record[0]))
                options += nodes.definition_list_item(
                    "", term, nodes.definition("", nodes.paragraph(text=record[1]))
                )
        section += options
        return section


def _commands(parent: click.Context, group: click.Group) -> Iterator[click.Context]:
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, parent, info_name=name)
        if isinstance(command, click.Group):
            yield from _commands(context, command)
        else:
            yield context


def sections_of_the_contract() -> dict[str, str]:
    """Return the anchor of each of the contract's sections by its number."""
    headings = re.findall(r"^## (\d+)(\. .*)$", CONTRACT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {number: nodes.make_id(number + title) for number, title in headings}


def write_docstring(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Turn a docstring, which is plain text with code in single backticks, into reStructuredText."""
    lines[:] = [*rewritten("\n".join(lines)).splitlines(), ""]


def rewritten(text: str) -> str:
    """Escape what has a meaning in reStructuredText, and link to the contract's sections."""
    return "".join(_pieces(text))


def _pieces(text: str) -> Iterator[str]:
    anchors = sections_of_the_contract()
    for piece in re.split(r"(`[^`]+`)", text):
        if piece.startswith("`"):
            yield f"`{piece}`"
            continue
        for part in re.split(r"(contract §\d+)", piece):
            number = re.search(r"\d+$", part)
            if number and part.startswith("contract") and number[0] in anchors:
                yield f"`contract §{number[0]} <contract.html#{anchors[number[0]]}>`__"
            else:
                yield re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part)


def find_top_documents(_app: Sphinx, *place_and_source: Any) -> None:
    """Let links to the documents at the top of the checkout lead to the pages that include them."""
    source = place_and_source[-1]
    source[0] = re.sub(
        r"\]\((?:\.\./)*(ARCHITECTURE|CHANGELOG|CONTRIBUTING)\.md",
        lambda link: f"](/{link[1].lower()}.md",
        source[0],
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives, and read `sql` as PostgreSQL's."""
    app.add_lexer("sql", PostgresLexer)
    app.add_directive("public-names", PublicNames)
    app.add_directive("command-line", CommandLine)
    app.connect("source-read", find_top_documents)
    app.connect("include-read", find_top_documents)
    app.connect("autodoc-process-docstring", write_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
