"""What runs elsewhere: the public CI's workflow, and docker-compose.yml."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from selene_core.local.binaries import VERSIONS
from tests.support.programs import find_compose

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
RELEASE = WORKFLOW.with_name("release.yml")
NIGHTLY = WORKFLOW.with_name("nightly.yml")
PUBLISHED = ("pyproject.toml", "README.md", "SECURITY.md", "CHANGELOG.md")
DEPENDABOT = ROOT / ".github" / "dependabot.yml"
COMPOSE = ROOT / "docker-compose.yml"


def load(path: Path) -> Any:
    """Parse a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pythons() -> set[str]:
    """Return the versions of Python that the package claims."""
    return {found[1] for each in project()["classifiers"] if (found := re.search(r":: (3\.\d+)$", each))}


def runs(job: dict[str, Any]) -> str:
    """Return the commands of a job."""
    return "\n".join(step.get("run", "") for step in job["steps"])


def test_workflow__tests_every_supported_version() -> None:
    job = load(WORKFLOW)["jobs"]["test"]
    pairs = job["strategy"]["matrix"]["include"]
    assert {pair["postgres"] for pair in pairs} == {str(version) for version in VERSIONS}
    assert {pair["python"] for pair in pairs} == pythons()
    # The ends meet: the oldest with the newest, both ways.
    oldest, newest = str(min(VERSIONS)), str(max(VERSIONS))
    first, *_, last = sorted(pythons(), key=lambda version: int(version.split(".")[1]))
    for postgres in (oldest, newest):
        assert {first, last} <= {pair["python"] for pair in pairs if pair["postgres"] == postgres}


def test_workflow__gives_the_service_container_to_the_tests() -> None:
    job = load(WORKFLOW)["jobs"]["test"]
    service = job["services"]["postgres"]
    assert service["image"] == "postgres:${{ matrix.postgres }}"
    assert "pg_isready" in service["options"]
    (step,) = [step for step in job["steps"] if "make test" in step.get("run", "")]
    assert step["run"] == "make test PG=${{ matrix.postgres }}"
    password = service["env"]["POSTGRES_PASSWORD"]
    assert (
        step["env"]["SELENE_TEST_DATABASE_URL"] == f"postgresql://postgres:{password}@127.0.0.1:5432/postgres"
    )


def test_workflow__runs_checks_pictures_and_the_pooler() -> None:
    jobs = load(WORKFLOW)["jobs"]
    assert {"make lint types", "make site", "make docs", "git diff --exit-code docs"} <= {
        *runs(jobs["check"]).splitlines()
    }
    assert "POOLER=pgbouncer" in runs(jobs["pooler"])
    assert "--cov=selene_core" in runs(jobs["coverage"])
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in jobs.values():
        for called in re.findall(r"^make ([a-z ]+?)(?= [A-Z]|$)", runs(job), flags=re.MULTILINE):
            for target in called.split():
                assert f"\n{target}: " in targets, target


def test_workflow__has_the_oldest_server_wherever_tests_run() -> None:
    """The tests of the wheel want both ends; the newest comes by pip."""
    for job in load(WORKFLOW)["jobs"].values():
        if "make test" in runs(job):
            assert re.search(rf"apt-get install .*postgresql-{min(VERSIONS)}\b", runs(job))


def test_workflow__is_bounded_and_may_only_read() -> None:
    workflow = load(WORKFLOW)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 40, name
        # A version, never a branch, of whatever else is run.
        assert all(re.search(r"@v\d+$", step["uses"]) for step in job["steps"] if "uses" in step), name


def test_nightly__soaks_both_ends_and_keeps_what_it_finds() -> None:
    workflow = load(NIGHTLY)
    assert workflow["permissions"] == {"contents": "read"}
    job = workflow["jobs"]["soak"]
    assert job["timeout-minutes"] <= 100
    assert job["strategy"]["matrix"]["postgres"] == [str(min(VERSIONS)), str(max(VERSIONS))]
    assert all(re.search(r"@v\d+$", step["uses"]) for step in job["steps"] if "uses" in step)
    assert f"postgresql-{min(VERSIONS)} pgbouncer" in runs(job)
    assert (
        'make soak PG=${{ matrix.postgres }} ARGS="--hours 1 --kills 1000 --folder soak-histories"'
        in runs(job)
    )
    (kept,) = [step for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert kept["with"]["path"] == "soak-histories/"
    assert "\nsoak: " in (ROOT / "Makefile").read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the distribution."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_release__publishes_what_was_checked_without_a_password() -> None:
    workflow = load(RELEASE)
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert workflow["permissions"] == {"contents": "read"}
    assert "make dist" in runs(build).splitlines()
    assert f"dist/{project()['name'].replace('-', '_')}-" in runs(build)
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert all(re.search(r"@v[\d.]+$", step["uses"]) for step in publish["steps"])
    assert "secrets." not in RELEASE.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["OWNER", "owner@example.invalid", "SECURITY-CONTACT", "N working days"])
@pytest.mark.parametrize("document", PUBLISHED)
def test_release__is_refused_while_a_placeholder_stands(tmp_path: Path, document: str, text: str) -> None:
    for name in PUBLISHED:
        (tmp_path / name).write_text(f"filled in\n{text * (name == document)}\n", encoding="utf-8")
    # What it needs is there, as far as make can tell.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    ran = subprocess.run(
        ["make", f"--file={ROOT / 'Makefile'}", "dist"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{document}:2:{text}\n" in ran.stdout
    assert "a release fills these in first" in ran.stderr
    assert "build" not in ran.stdout


def test_dependabot__looks_at_actions_and_packages() -> None:
    updates = load(DEPENDABOT)["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"github-actions", "pip"}


def test_compose__migrates_a_healthy_server_once() -> None:
    compose = load(COMPOSE)
    assert set(compose) == {"services", "volumes"}
    server, migration = compose["services"]["postgres"], compose["services"]["migrate"]
    assert server["image"] == f"postgres:{max(VERSIONS)}"
    # From 18 on the image keeps its data in a folder below this one; .../data would be no volume of its own.
    assert server["volumes"] == ["postgres:/var/lib/postgresql"]
    assert compose["volumes"] == {"postgres": None, "tickets": None}
    assert "--host=127.0.0.1" in server["healthcheck"]["test"]
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert migration["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert migration["restart"] == "no"
    assert migration["image"].removeprefix("python:").removesuffix("-slim") in pythons()


def test_compose__the_service_comes_after_its_login_after_the_migration() -> None:
    services = load(COMPOSE)["services"]
    assert services["login"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["login"]["image"] == services["postgres"]["image"]
    for name in ("service", "worker"):
        program = services[name]
        assert program["depends_on"] == {"login": {"condition": "service_completed_successfully"}}
        assert program["image"] == services["migrate"]["image"]
        assert program["environment"]["SELENE_DATABASE_URL"].startswith("postgresql://trips@"), "no superuser"
        assert all(port.startswith("127.0.0.1:") for port in program["ports"])


@pytest.mark.needs("docker compose")
def test_compose__is_taken_by_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a password that YAML, a shell and a URL would each like to read something into."""
    monkeypatch.setenv("SELENE_DB_PASSWORD", "p@ss: w/%'\"#")
    monkeypatch.setenv("SELENE_DB_PORT", "15432")
    monkeypatch.setenv("SELENE_SERVICE_PASSWORD", "s@ss: w/%'\"#$")
    monkeypatch.setenv("SELENE_SERVICE_PORT", "18000")
    command = find_compose()
    assert command is not None, "docker compose is not installed"
    ran = subprocess.run(
        [*command, "--file", str(COMPOSE), "config"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    services = yaml.safe_load(ran.stdout)["services"]
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"] == "p@ss: w/%'\"#"
    assert services["migrate"]["environment"]["PGPASSWORD"] == "p@ss: w/%'\"#"
    assert services["login"]["environment"]["SERVICE_PASSWORD"] == "s@ss: w/%'\"#$$"  # as it prints a $
    for name in ("service", "worker"):
        assert services[name]["environment"]["PGPASSWORD"] == "s@ss: w/%'\"#$$"
    assert "15432" in str(services["postgres"]["ports"])
    assert "18000" in str(services["service"]["ports"])
    assert not services["worker"].get("ports")
