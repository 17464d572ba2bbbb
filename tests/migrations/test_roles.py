"""Who may migrate, and what a migrator who lacks something is told (contract §10 and §13)."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from selene_core.cli import cli
from selene_core.migrations import (
    MigrationRefused,
    current,
    history,
    upgrade,
)
from tests.migrations.runs import (
    PATIENT,
    alembic,
    alembic_apart,
    alembic_started,
    catalogue_of,
    everything,
    held,
    psql,
    run_all,
    script,
    stands_at,
    statements_in,
    wait_until_dead,
    wait_until_stopped,
)
from tests.support.servers import Database, Server

ROLES = [
    f"CREATE ROLE {name} NOLOGIN" for name in ("selene_owner", "selene_app", "selene_readonly", "selene_feed")
]
PLAIN = ["CREATE ROLE migrator LOGIN", "GRANT CREATE ON DATABASE {database} TO migrator"]
GRANTED = [*ROLES, *PLAIN, "GRANT selene_owner TO migrator"]

WELL_EQUIPPED = {
    "superuser": ["CREATE ROLE migrator LOGIN SUPERUSER"],
    "createrole": ["CREATE ROLE migrator LOGIN CREATEROLE", PLAIN[1]],
    "createrole_noinherit": ["CREATE ROLE migrator LOGIN CREATEROLE NOINHERIT", PLAIN[1]],
    "owner_of_the_database": [
        "CREATE ROLE migrator LOGIN CREATEROLE",
        "ALTER DATABASE {database} OWNER TO migrator",
    ],
    "roles_made_beforehand": GRANTED,
    "roles_made_beforehand_noinherit": [*GRANTED, "ALTER ROLE migrator NOINHERIT"],
    "schemas_made_beforehand": [
        *ROLES,
        "CREATE ROLE migrator LOGIN IN ROLE selene_owner",
        "CREATE SCHEMA os_core AUTHORIZATION selene_owner",
        "CREATE SCHEMA conversation AUTHORIZATION selene_owner",
    ],
    "acting_as_the_owner": [*GRANTED, "ALTER ROLE migrator SET role = selene_owner"],
}
WELL_EQUIPPED["acting_as_the_owner"] += ["GRANT CREATE ON DATABASE {database} TO selene_owner"]

# What the superuser did before, and what the refusal must say.
ILL_EQUIPPED = {
    "no_roles": (PLAIN, "may not create roles"),
    "one_role_missing": (
        [ROLES[0], ROLES[1], *PLAIN, "GRANT selene_owner TO migrator"],
        "may not create roles",
    ),
    "no_grant": ([*ROLES, *PLAIN], "may not act as selene_owner"),
    "no_create_on_database": (
        [*ROLES, PLAIN[0], "GRANT selene_owner TO migrator"],
        "may not create schemas",
    ),
    "nothing": ([PLAIN[0]], "may not create roles; .*may not act as .*; .*may not create schemas"),
    "owner_is_superuser": ([*GRANTED, "ALTER ROLE selene_owner SUPERUSER"], "selene_owner has SUPERUSER"),
    "owner_bypasses": ([*GRANTED, "ALTER ROLE selene_owner BYPASSRLS"], "selene_owner has .*BYPASSRLS"),
    "app_bypasses": ([*GRANTED, "ALTER ROLE selene_app BYPASSRLS"], "selene_app has .*BYPASSRLS"),
    "readonly_is_superuser": (
        [*GRANTED, "ALTER ROLE selene_readonly SUPERUSER"],
        "selene_readonly has SUPERUSER",
    ),
    "owner_is_superuser_and_not_granted": (
        [*ROLES, *PLAIN, "ALTER ROLE selene_owner SUPERUSER"],
        "has SUPERUSER .*may not act as",
    ),
    "app_could_become_owner": (
        [*GRANTED, "GRANT selene_owner TO selene_app"],
        "selene_app could become selene_owner",
    ),
    "readonly_could_become_owner_by_a_third": (
        [
            *GRANTED,
            "CREATE ROLE staff IN ROLE selene_owner",
            "CREATE ROLE granter",
            "GRANT staff TO granter WITH ADMIN OPTION",
            "GRANT staff TO selene_readonly GRANTED BY granter",
        ],
        "selene_readonly could become selene_owner",
    ),
    "schema_of_another": (
        [*GRANTED, "CREATE SCHEMA conversation"],
        "schema conversation belongs to postgres",
    ),
}
ILL_EQUIPPED_FROM_16 = {
    "granted_without_set": (
        [*ROLES, *PLAIN, "GRANT selene_owner TO migrator WITH SET FALSE"],
        "may not act as selene_owner",
    ),
}


def equip(database: Database, statements: list[str]) -> sa.URL:
    """Run statements as the superuser, and return the migrator's URL."""
    run_all(database, [statement.format(database=database.name) for statement in statements])
    return database.server.url_for("migrator", database.name)


@pytest.mark.parametrize("equipment", WELL_EQUIPPED)
def test_upgrade__every_migrator_makes_the_same_schema(
    bare_database: Database, catalogue_at: Callable[[str], str], equipment: str
) -> None:
    url = equip(bare_database, WELL_EQUIPPED[equipment])
    upgrade(url)
    assert catalogue_of(bare_database) == catalogue_at("head")
    upgrade(url)
    assert catalogue_of(bare_database) == catalogue_at("head")


@pytest.mark.parametrize("equipment", WELL_EQUIPPED)
def test_current__every_migrator_may_look(bare_database: Database, equipment: str) -> None:
    url = equip(bare_database, WELL_EQUIPPED[equipment])
    assert current(url) is None
    upgrade(url)
    assert current(url) == history()[-1].revision


@pytest.mark.parametrize("role", ["CREATEROLE", "CREATEROLE NOINHERIT", "", "NOINHERIT"])
def test_command__a_second_migrator_is_told_what_it_lacks(
    cluster: Server, bare_database: Database, role: str
) -> None:
    """By every command, on a database that stands at head: none may fail at its first look."""
    upgrade(equip(bare_database, WELL_EQUIPPED["createrole"]))
    run_all(bare_database, [f"CREATE ROLE colleague LOGIN {role}"])
    url = cluster.url_for("colleague", bare_database.name)
    before = everything(bare_database)
    if cluster.version < 16 and "CREATEROLE" in role:
        assert current(url) == history()[-1].revision
        assert everything(bare_database) == before, "to look grants nothing"
        return
    text = url.render_as_string(hide_password=False)
    grant = "GRANT selene_owner TO colleague" + (" WITH SET TRUE;" if cluster.version >= 16 else ";")
    commands = [
        CliRunner().invoke(cli, [command, "--url", text]).exception for command in ("upgrade", "current")
    ]
    for refused in commands:
        assert isinstance(refused, MigrationRefused)
        assert statements_in(str(refused)) == [grant]
    refusal = alembic(url, "upgrade", "head")
    assert refusal.returncode != 0
    assert statements_in(refusal.stdout) == [grant]
    assert everything(bare_database) == before
    run_all(bare_database, [grant])
    for command in ("upgrade", "current"):
        assert CliRunner().invoke(cli, [command, "--url", text]).exit_code == 0


SERVICES = {
    "a member of selene_app": ["CREATE ROLE orders LOGIN IN ROLE selene_app"],
    "a member of selene_readonly": ["CREATE ROLE orders LOGIN IN ROLE selene_readonly"],
    "a member who does not inherit": ["CREATE ROLE orders LOGIN NOINHERIT IN ROLE selene_app"],
    "a member through a team": [
        "CREATE ROLE team IN ROLE selene_app",
        "CREATE ROLE orders LOGIN IN ROLE team",
    ],
    "a member who acts as the group": [
        "CREATE ROLE orders LOGIN IN ROLE selene_app",
        "ALTER ROLE orders SET role = selene_app",
    ],
    "a member who may create roles": ["CREATE ROLE orders LOGIN CREATEROLE IN ROLE selene_app"],
    "an odd name": ['CREATE ROLE "orders-of-100%s" LOGIN IN ROLE selene_app'],
}


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("database", ["migrated", "empty"])
def test_upgrade__a_services_login_is_called_that(
    cluster: Server, bare_database: Database, service: str, database: str
) -> None:
    """And no statement is advised that would let it act as the owner, or that gives it anything."""
    equip(bare_database, WELL_EQUIPPED["createrole"])
    if database == "migrated":
        upgrade(cluster.url_for("migrator", bare_database.name))
    else:
        run_all(bare_database, ROLES)
    run_all(bare_database, SERVICES[service])
    login = "orders-of-100%s" if service == "an odd name" else "orders"
    url = cluster.url_for(login, bare_database.name)
    before = everything(bare_database)
    with pytest.raises(MigrationRefused, match="is the login of a service, a member of selene_") as refusal:
        upgrade(url)
    refused = alembic(url, "upgrade", "head")
    assert refused.returncode != 0
    by_script = psql(bare_database, script("head"), url)
    assert by_script.returncode == 3
    by_command = CliRunner().invoke(cli, ["upgrade", "--url", url.render_as_string(hide_password=False)])
    for said in (str(refusal.value), refused.stdout, by_script.stderr, str(by_command.exception)):
        assert login in said
        assert "the login of a service" in said
        assert "Connect as the migrator" in said
        assert "GRANT" not in said
    assert everything(bare_database) == before


def test_upgrade__who_made_the_group_roles_is_no_service(cluster: Server, bare_database: Database) -> None:
    """A cloud makes each of its creators a member who inherits (createrole_self_grant)."""
    url = equip(bare_database, WELL_EQUIPPED["createrole"])
    if cluster.version >= 16:
        run_all(bare_database, ["ALTER ROLE migrator SET createrole_self_grant = 'set, inherit'"])
    upgrade(url)
    upgrade(url)
    with cluster.new_database("second") as second:
        run_all(second, [PLAIN[1].format(database=second.name)])
        upgrade(cluster.url_for("migrator", second.name))


def test_upgrade__the_owner_owns_everything(bare_database: Database) -> None:
    upgrade(equip(bare_database, WELL_EQUIPPED["createrole"]))
    owned = sa.text("""
        SELECT DISTINCT pg_get_userbyid(owner) FROM (
          SELECT nspowner AS owner FROM pg_namespace WHERE nspname IN ('os_core', 'conversation')
          UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'os_core'::regnamespace
          UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'os_core'::regnamespace
          UNION ALL SELECT typowner FROM pg_type WHERE typnamespace = 'os_core'::regnamespace
        ) AS things
    """)
    version_table = sa.text(
        "SELECT tableowner FROM pg_tables WHERE schemaname = 'os_core' AND tablename = 'alembic_version'"
    )
    with bare_database.engine("admin").connect() as conn:
        assert conn.scalars(owned).all() == ["selene_owner"]
        assert conn.scalars(version_table).all() == ["selene_owner"]


@pytest.fixture(params=[*ILL_EQUIPPED, *ILL_EQUIPPED_FROM_16])
def ill_equipped(request: pytest.FixtureRequest, bare_database: Database) -> tuple[sa.URL, str]:
    """Return a migrator who lacks something, and what must be said to that."""
    name: str = request.param
    if name in ILL_EQUIPPED_FROM_16 and bare_database.server.version < 16:
        # What it is about does not exist there: the statement is a syntax error.
        statements, reason = ILL_EQUIPPED["no_grant"]
    else:
        statements, reason = (ILL_EQUIPPED | ILL_EQUIPPED_FROM_16)[name]
    return equip(bare_database, statements), reason


def test_upgrade__what_is_missing_is_printed_and_mends_it(
    bare_database: Database, catalogue_at: Callable[[str], str], ill_equipped: tuple[sa.URL, str]
) -> None:
    url, reason = ill_equipped
    before = everything(bare_database)
    with pytest.raises(MigrationRefused, match=f"(?s){reason}") as refusal:
        upgrade(url)
    assert everything(bare_database) == before
    run_all(bare_database, statements_in(str(refusal.value)))
    upgrade(url)
    assert catalogue_of(bare_database) == catalogue_at("head")


def test_upgrade__names_are_quoted(cluster: Server, catalogue_at: Callable[[str], str]) -> None:
    odd = 'odd "name" 100%s'
    with cluster.new_database("odd") as made:
        with cluster.admin() as conn:
            conn.execute(f"""ALTER DATABASE {made.name} RENAME TO "{odd.replace('"', '""')}" """.encode())
            conn.execute(f"""CREATE ROLE "{odd.replace('"', '""')}" LOGIN""".encode())
        database = Database(cluster, odd)
        try:
            url = cluster.url_for(odd, odd)
            with pytest.raises(MigrationRefused) as refusal:
                upgrade(url)
            run_all(database, statements_in(str(refusal.value)))
            upgrade(url)
            assert catalogue_of(database) == catalogue_at("head")
        finally:
            database.close()
            with cluster.admin() as conn:
                conn.execute(f"""ALTER DATABASE "{odd.replace('"', '""')}" RENAME TO {made.name}""".encode())


def test_command__refusal_is_a_sentence(bare_database: Database) -> None:
    url = equip(bare_database, PLAIN)
    refused = alembic(url, "upgrade", "head")
    assert refused.returncode != 0
    assert "FAILED: migrator may not create roles" in refused.stdout
    assert "Traceback" not in refused.stdout
    run_all(bare_database, statements_in(refused.stdout))
    assert alembic(url, "upgrade", "head").returncode == 0
    assert stands_at(bare_database) != "nothing"


def test_script__what_is_missing_is_printed_and_mends_it(
    bare_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    url = equip(bare_database, [PLAIN[0]])
    before = everything(bare_database)
    refused = psql(bare_database, script("head"), url)
    assert refused.returncode == 3
    assert everything(bare_database) == before
    run_all(bare_database, statements_in(refused.stderr))
    assert psql(bare_database, script("head"), url).returncode == 0
    assert catalogue_of(bare_database) == catalogue_at("head")


def test_upgrade__existing_roles_are_accepted_as_they_are(bare_database: Database) -> None:
    run_all(
        bare_database,
        [
            "CREATE ROLE selene_owner NOLOGIN CONNECTION LIMIT 3",
            "CREATE ROLE selene_app NOLOGIN NOINHERIT",
            "COMMENT ON ROLE selene_app IS 'ours'",
        ],
    )
    upgrade(bare_database.admin_url)
    kept = sa.text(
        "SELECT rolname, rolconnlimit, rolinherit, shobj_description(oid, 'pg_authid') FROM pg_roles"
        " WHERE rolname LIKE 'selene%' ORDER BY rolname"
    )
    with bare_database.engine("admin").connect() as conn:
        assert conn.execute(kept).all() == [
            ("selene_app", -1, False, "ours"),
            ("selene_owner", 3, True, None),
            ("selene_readonly", -1, True, None),
        ]


def test_upgrade__second_database_of_the_cluster(cluster: Server, catalogue_at: Callable[[str], str]) -> None:
    with cluster.new_database("first") as first, cluster.new_database("second") as second:
        upgrade(equip(first, WELL_EQUIPPED["createrole"]))
        run_all(second, [PLAIN[1].format(database=second.name)])
        upgrade(cluster.url_for("migrator", second.name))
        assert catalogue_of(first) == catalogue_of(second) == catalogue_at("head")


def test_upgrade__second_database_by_another_migrator(
    cluster: Server, catalogue_at: Callable[[str], str]
) -> None:
    with cluster.new_database("first") as first, cluster.new_database("second") as second:
        upgrade(equip(first, WELL_EQUIPPED["createrole"]))
        run_all(
            second,
            [
                "CREATE ROLE colleague LOGIN CREATEROLE",
                f"GRANT CREATE ON DATABASE {second.name} TO colleague",
            ],
        )
        url = cluster.url_for("colleague", second.name)
        if cluster.version >= 16:  # up to 15, CREATEROLE grants any role
            with pytest.raises(MigrationRefused, match="colleague may not act as selene_owner") as refusal:
                upgrade(url)
            run_all(second, statements_in(str(refusal.value)))
        upgrade(url)
        assert catalogue_of(second) == catalogue_at("head")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_upgrade__role_made_at_the_same_time_from_elsewhere(
    cluster: Server, catalogue_at: Callable[[str], str], end: str
) -> None:
    with cluster.new_database("first") as first, cluster.new_database("second") as second:
        with (
            held(first, ROLES[0]) as other,
            alembic_started(second.admin_url, "upgrade", "head", **PATIENT) as process,
        ):
            wait_until_stopped(second)
            other.exec_driver_sql(end)
            assert process.wait() == 0, process.stdout and process.stdout.read()
        assert catalogue_of(second) == catalogue_at("head")


def test_upgrade__two_databases_at_once(cluster: Server, catalogue_at: Callable[[str], str]) -> None:
    with cluster.new_database("first") as first, cluster.new_database("second") as second:
        run_all(first, [WELL_EQUIPPED["createrole"][0]])
        databases = (first, second)
        for database in databases:
            run_all(database, [PLAIN[1].format(database=database.name)])

        def run(database: Database) -> subprocess.CompletedProcess[str]:
            return alembic_apart(cluster.url_for("migrator", database.name), "upgrade", "head")

        with ThreadPoolExecutor() as pool:
            for done in pool.map(run, databases):
                assert done.returncode == 0, done.stdout
        assert catalogue_of(first) == catalogue_of(second) == catalogue_at("head")


def test_upgrade__killed_while_it_prepares(
    bare_database: Database, catalogue_at: Callable[[str], str]
) -> None:
    before = everything(bare_database)
    # The last of the preparations: all roles are made by then.
    with held(bare_database, "CREATE SCHEMA conversation"):
        with alembic_started(bare_database.admin_url, "upgrade", "head", **PATIENT) as process:
            pid = wait_until_stopped(bare_database)
            with bare_database.server.admin() as conn:
                conn.execute("SELECT pg_terminate_backend(%s)", [pid])
            assert process.wait() != 0
        wait_until_dead(bare_database, pid)
    assert everything(bare_database) == before
    upgrade(bare_database.admin_url)
    assert catalogue_of(bare_database) == catalogue_at("head")
