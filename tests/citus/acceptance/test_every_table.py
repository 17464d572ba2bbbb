"""tests/acceptance/test_every_table.py on the cluster: tests/citus/differences.py names what fails there."""

import pytest

from tests.acceptance.test_every_table import *  # noqa: F403 - pytest finds the tests and their fixtures here

pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]
