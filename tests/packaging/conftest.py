"""Build once, install once."""

import pytest

from tests.packaging.installed import Distributions, Installed, build, install


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Return the checkout's sdist and wheel."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return an environment with the wheel."""
    return install(distributions.wheel, tmp_path_factory.mktemp("environment") / "venv")
