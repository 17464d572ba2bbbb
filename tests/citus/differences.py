"""What the acceptance tests find otherwise on a cluster: the guide's list, docs/howto/citus.md.

Each must fail there, or the list is wrong. What they would hide is in tests/citus/acceptance/test_holes.py.
"""

from dataclasses import dataclass
from typing import Final

from tests.acceptance.test_every_table import LEDGERS, TABLES


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that fails on a cluster: for each of its parameters, or for some."""

    test: str
    what: str
    parameters: tuple[str, ...] = ()


DIFFERENCES: Final = (
    Difference(
        "test_at_os_core_db_01_tenant_isolation_enforced",
        "Another tenant's `work_order_id` is not refused (SL015): ids are unique within a tenant.",
    ),
    Difference(
        "test_at_os_core_db_02_append_only_enforced",
        "An UPDATE or DELETE with `WHERE FALSE` is sent to no node: it changes nothing, without an error.",
    ),
    Difference("test_ledger__cannot_be_rewritten", "The same, for each ledger."),
    Difference(
        "test_isolation__a_later_policy_opens_nothing",
        "RESTRICTIVE policies are permissive on shards: a later policy can open a table.",
    ),
    Difference(
        "test_isolation__no_row_is_written_past_the_policies",
        "A change of `tenant_id`, and a copy to another tenant, are refused by Citus, with 0A000.",
        tuple(table for table in TABLES if table not in LEDGERS),
    ),
    Difference(
        "test_ledger__each_trigger_stands_alone",
        "The test changes `tenant_id`, which Citus refuses first, with 0A000.",
    ),
    Difference(
        "test_ledger__nothing_cascades_into_it",
        "The test makes a foreign key to a table that is not distributed: there can be none.",
    ),
    Difference(
        "test_foreign_key__refuses_another_tenants_row_like_one_that_is_not_there",
        "The test finds a row by `ctid`, which Citus does not take. The keys are on every shard.",
    ),
    Difference(
        "test_search_path__no_row_that_is_written_runs_a_strangers_operator",
        "The test makes operators by the hundred in one transaction, which Citus does not send.",
    ),
)
