"""The distributions of this checkout, and the wheel in a virtual environment of its own."""

import re
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.migrations.runs import ROOT, alembic_env

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = 600  # both reach for the package index


@dataclass(frozen=True, slots=True)
class Distributions:
    """What `python -m build` makes: the sdist, and from that the wheel."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel and its embedded server; nothing of the checkout."""

    folder: Path

    def run(self, *command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, in a folder."""
        program, *arguments = command
        return subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=cwd,
            env={
                **{name: value for name, value in alembic_env().items() if not name.startswith("PYTHON")},
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def type_check(self, program: Path) -> subprocess.CompletedProcess[str]:
        """Check a program with this mypy and that environment's packages."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "mypy", "--strict", "--config-file", ""),
                *("--python-executable", self.folder / "bin" / "python"),
                *("--cache-dir", self.folder / "mypy", program),
            ],
            cwd=program.parent,
            env=alembic_env(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def build(folder: Path) -> None:
    """Build both distributions of the checkout, the wheel from the sdist."""
    _run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))


def find(folder: Path) -> Distributions:
    """Find what was built."""
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return Distributions(sdist, wheel)


def install(wheel: Path, folder: Path) -> None:
    """Install a wheel as the README says, into a new environment."""
    venv.create(folder, with_pip=True, symlinks=True, clear=True)
    (extra,) = re.findall(r'^pip install "selene-os-core(\[local])"', README, flags=re.MULTILINE)
    _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", f"{wheel}{extra}")


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        cwd="/",
        env=alembic_env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
