"""tests/acceptance/test_every_table.py on the cluster, but for tests/citus/differences.py."""

import pytest

from tests.acceptance.test_every_table import *  # noqa: F403 - pytest finds the tests and their fixtures here

pytestmark = [pytest.mark.needs("Citus"), pytest.mark.slow]
