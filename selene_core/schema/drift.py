"""Compare the facts of a database with the expected ones (catalogue.txt)."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from selene_core.schema.neighbours import UNSHARED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selene_core.schema.catalogue import Facts

CATALOGUE_FILE: Final = Path(__file__).with_name("catalogue.txt")
VERSION_TABLE: Final = "relation os_core.alembic_version"


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that is not as expected; None: no such value. Without an aspect it is the whole thing."""

    thing: str
    aspect: str
    expected: str | None
    found: str | None

    @property
    def kind(self) -> str:
        """The kind of the thing: relation, function, role, ..."""
        return "default privileges" if self.thing.startswith("default ") else self.thing.partition(" ")[0]

    @property
    def name(self) -> str:
        """The name of the thing, quoted for SQL."""
        return self.thing.removeprefix(self.kind).strip()

    @property
    def is_harmless(self) -> bool:
        """Whether it changes neither what the library relies on nor what the database guarantees."""
        if self.aspect.startswith("grant"):
            return self.expected == self.found
        if self.kind == "outside":
            return str(self.found).endswith(UNSHARED)
        if self.kind != "relation" or self.expected is not None or self.found is None:
            return False
        if self.aspect.startswith("index "):
            is_plain = self.found.startswith("CREATE INDEX ") and not self.found.endswith(" INVALID")
            return is_plain and not self._samples_hidden
        if self.aspect.startswith("extended statistics "):
            return not self._samples_hidden
        if self.aspect.startswith("trigger "):
            # It sees what is written and changes nothing of it; whose code it is, catalogue.read() judges.
            made = f"TRIGGER {self.aspect.removeprefix('trigger ')} AFTER "
            return self.found.startswith((f"CREATE {made}", f"CREATE CONSTRAINT {made}"))
        return self.aspect.startswith(("statistics target of ", "options", "replica identity"))

    @property
    def _samples_hidden(self) -> bool:
        """Whether ANALYZE keeps for it what it must not keep of a column: one whose target is 0."""
        hidden = [
            aspect.removeprefix("statistics target of ")
            for aspect, value in expected_schema().facts.get(self.thing, {}).items()
            if aspect.startswith("statistics target of ") and value == "0"
        ]
        # Not the type of that name, in a cast.
        return any(re.search(rf'(?<![\w":.]){re.escape(each)}(?![\w"])', self.found or "") for each in hidden)


@dataclass(frozen=True, slots=True)
class ExpectedSchema:
    """The facts at the newest revision, and the ids of all revisions up to it, in order."""

    revisions: tuple[str, ...]
    facts: Facts

    @property
    def head(self) -> str:
        """The revision that this version of the library is for."""
        return self.revisions[-1]


@cache
def expected_schema() -> ExpectedSchema:
    """Return what this version of the library is for; not to be changed."""
    head, _, body = CATALOGUE_FILE.read_text(encoding="utf-8").partition("\n\n")
    facts: Facts = {}
    for block in body.split("\n\n"):
        thing, *lines = block.strip("\n").split("\n  ")
        # No name of ours has a colon in it.
        facts[thing] = {aspect: value for aspect, _, value in (line.partition(": ") for line in lines)}
    return ExpectedSchema(tuple(head.removeprefix("revisions: ").split()), facts)


def has_tables(found: Facts) -> bool:
    """Tell whether any table of ours is there, the version table apart."""
    tables = {thing for thing in expected_schema().facts if thing.startswith("relation ")}
    return bool(tables & found.keys() - {VERSION_TABLE})


def differences(expected: Facts, found: Facts) -> Iterator[Difference]:
    """Compare facts. A thing that is missing, or must not be there, is named once."""
    for thing in expected | found:
        wanted, there = expected.get(thing, {}), found.get(thing, {})
        if not (wanted and there) and not thing.startswith("default privileges"):
            expects, has = ("there", None) if wanted else (None, there.get("kind", "there"))
            yield Difference(thing, "", expects, has)
            continue
        for aspect in wanted | there:
            value, has = wanted.get(aspect), there.get(aspect)
            if value != has:
                yield Difference(thing, aspect, value or _permitted(thing, aspect, str(has)), has)


def _permitted(thing: str, aspect: str, value: str) -> str | None:
    """Return what a host may grant to a role of its own: what selene_readonly has, and REFERENCES."""
    if not aspect.startswith("grant") or thing.startswith("default "):
        return None
    grant = Grant.parse(aspect)
    if grant.grantor or grant.grantee in {"PUBLIC", "OWNER", *_ROLES}:
        return None
    facts = expected_schema().facts[thing]
    readable = privileges(facts.get("grant to selene_readonly"))
    if grant.column:
        readable |= privileges(facts.get(f"grant ({grant.column}) to selene_readonly"))
    may = readable | ({"REFERENCES"} if thing.startswith("relation ") else set())
    return ",".join(sorted(may & {name.rstrip("*") for name in privileges(value)})) or None


_ROLES: Final = {"selene_owner", "selene_app", "selene_readonly", "selene_feed"}


def shared_differences(found: Facts, *, is_guarded: bool) -> Iterator[Difference]:
    """Return the differences that are wrong at every revision: of the roles, and of the things that exist.

    With is_guarded the tables have their policies and triggers already.
    """
    for difference in differences(expected_schema().facts, found):
        if difference.is_harmless:
            continue
        match difference.kind, difference.aspect.partition(" ")[0]:
            case ("role" | "outside", _) | ("schema", ""):
                yield difference
            case "relation", "trigger" if is_guarded or difference.found:
                definition = (difference.expected or "").rpartition(", enabled ")[0]
                if definition in (difference.found or definition):
                    yield difference
            case "relation", "row" | "force" | "policy" if is_guarded and difference.expected:
                yield difference
    for thing, aspects in found.items():
        for aspect, value in aspects.items():
            if aspect.startswith("grant") and not thing.startswith("default "):
                yield from _forbidden(thing, aspect, value)
            elif is_related_outside(aspect):
                yield Difference(thing, aspect, None, value)


def is_related_outside(aspect: str) -> bool:
    """Tell whether a fact is a parent or child of a table outside our schemas."""
    keyword, _, other = aspect.partition(" ")
    return keyword in {"parent", "child"} and not other.startswith(("os_core.", "conversation."))


def _forbidden(thing: str, aspect: str, value: str) -> Iterator[Difference]:
    """Return grants that no revision makes: any to PUBLIC, and writing to the application's roles."""
    match Grant.parse(aspect).grantee:
        case "PUBLIC":
            forbidden = privileges(value)
        case "selene_app" | "selene_readonly" | "selene_feed" if thing.startswith("relation "):
            forbidden = {each for each in privileges(value) if each.rstrip("*") in _WRITING}
        case _:
            return
    forbidden -= privileges(expected_schema().facts.get(thing, {}).get(aspect))
    if forbidden:
        yield Difference(thing, aspect, ",".join(sorted(privileges(value) - forbidden)) or None, value)


_WRITING: Final = {"INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN"}


def describe(difference: Difference) -> str:
    """Describe a difference in a sentence."""
    thing, aspect, expected, found = astuple(difference)
    where = f"{aspect} of {thing}" if aspect else thing
    definition, _, state = (expected or "").rpartition(", enabled ")
    match difference.kind, aspect.partition(" ")[0]:
        case "outside", _:
            return f"{difference.name} {found}"
        case _, "grant":
            return _describe_grant(difference)
        case "role", "attributes":
            return f"{thing} is {found}, and must be {expected}"
        case "role", "member":
            return f"{thing} must not be a {aspect.partition(' by ')[0]}"
        case _, "statistics":
            return f"{where} is {found or 'the default'}, not {expected or 'the default'}"
        case _, "parent" if expected is None:
            return f"{thing} has {aspect}, and must have none: whoever may query that reads its rows"
        case _, "trigger" if expected is None and found.startswith("of a foreign key"):
            return f"{where}, which keeps a foreign key, is disabled"
        case _, "trigger" if expected and found and found.startswith(f"{definition}, enabled "):
            fires = found.rpartition(", enabled ")[2]
            return f"{where} is {'disabled' if fires == 'NEVER' else f'enabled as {fires}'}, not as {state}"
        case _ if expected is None:
            invalid = ", and is invalid" if found.endswith(" INVALID") else ""
            return f"{where} must not be there{invalid}"
        case _ if found is None:
            return f"{where} is missing"
        case _, "owner":
            return f"{thing} belongs to {found}, not to {expected}"
        case _, "row" | "force":
            return f"row-level security is not {'forced' if 'force' in aspect else 'enabled'} on {thing}"
        case "function", "body":
            return f"{where} is not the one that was shipped"
        case _ if found in {f"{expected} INVALID", f"{expected} NOT VALID"}:
            return f"{where} is {'invalid' if found.endswith(' INVALID') else 'not validated'}"
    return f"{where} is {found!r}, not {expected!r}"


class Grant(NamedTuple):
    """The grantee and the kind of access list of a grant; the thing says what it is on."""

    column: str | None
    objects: str | None
    grantee: str
    grantor: str | None

    @classmethod
    def parse(cls, aspect: str) -> Self:
        """Take the aspect of a grant apart."""
        match = _GRANT.fullmatch(aspect)
        if match is None:
            raise ValueError(f"no grant: {aspect}")
        return cls(match["column"], match["objects"], match["grantee"], match["grantor"])


_GRANT: Final = re.compile(
    r"""grant(?:\ \((?P<column>.+)\))?(?:\ on\ (?P<objects>[A-Z]+))?
    \ to\ (?P<grantee>"(?:[^"]|"")+"|\S+)(?:\ by\ (?P<grantor>.+))?""",
    re.VERBOSE | re.DOTALL,
)


def privileges(value: str | None) -> set[str]:
    """Take the privileges of a grant apart; one with grant option ends in a star."""
    return set(value.split(",")) if value else set()


def _describe_grant(difference: Difference) -> str:
    grant = Grant.parse(difference.aspect)
    place = f"{grant.column} of {difference.thing}" if grant.column else difference.thing
    place = f"{grant.objects} by {place}" if grant.objects else place
    who = "the owner" if grant.grantee == "OWNER" else grant.grantee
    extra = privileges(difference.found) - privileges(difference.expected)
    lacking = privileges(difference.expected) - {each.rstrip("*") for each in privileges(difference.found)}
    if not extra and not lacking:
        return f"{who} has {_listed(privileges(difference.found))} on {place}"
    said = [
        f"{who} must not have {_listed(extra)}" if extra else "",
        f"{who} lacks {_listed(lacking)}" if lacking else "",
    ]
    return f"{' and '.join(filter(None, said))} on {place}"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)).replace("*", " with grant option")
