"""Build once, install once, however many processes share the tests."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.packaging.installed import Distributions, Installed, build, find, install


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that all processes of the session share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "workshop"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def distributions(workshop: Path) -> Distributions:
    """Return the checkout's sdist and wheel."""
    with _first_of_all(workshop / "dist") as is_first:
        if is_first:
            build(workshop / "dist")
    return find(workshop / "dist")


@pytest.fixture(scope="session")
def installed(distributions: Distributions, workshop: Path) -> Installed:
    """Return an environment with the wheel."""
    with _first_of_all(workshop / "environment") as is_first:
        if is_first:
            install(distributions.wheel, workshop / "environment")
    return Installed(workshop / "environment")


@contextmanager
def _first_of_all(folder: Path) -> Iterator[bool]:
    """Tell one process that it has to fill a folder, the others once that has succeeded that it is there."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        yield not done.exists()
        done.touch()
