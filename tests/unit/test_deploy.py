"""The container image and the Compose file, as far as they can be checked without a container engine."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from orchestrator.cli.main import cli

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
OURS = {"migrate", "api", "worker", "beat"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_role_runs_a_command_that_rebuildctl_has(name: str) -> None:
    assert SERVICES[name]["command"][0] in cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_every_lasting_service_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]


def test_images_are_pinned_to_a_version() -> None:
    images = [s["image"] for s in SERVICES.values()] + re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert [i for i in images if not re.search(r":\d+\.\d+", i)] == []


def test_what_the_dockerfile_copies_exists_and_is_in_the_build_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [s for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for s in line.split()[:-1]]
    assert {"orchestrator", "workers", "migrations", "requirements.lock"} <= set(sources)
    assert [s for s in sources if not (ROOT / s).exists() or s not in kept] == []


def test_the_image_runs_rebuildctl_as_an_ordinary_user() -> None:
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    user = re.findall(r"^USER (\d+)", last, re.MULTILINE)
    assert user
    assert int(user[-1]) > 0
    assert 'ENTRYPOINT ["rebuildctl"]' in last


def test_the_service_waits_for_the_migration_and_the_migration_for_the_database() -> None:
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in OURS - {"migrate"}:
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_the_port_that_is_published_is_the_one_that_the_api_listens_on() -> None:
    bound = re.search(r"REBUILD_BIND=\S+:(\d+)", DOCKERFILE)
    assert bound
    assert SERVICES["api"]["ports"][0].endswith(f":{bound[1]}")


def test_a_worker_gets_longer_to_stop_than_its_warm_shutdown_takes() -> None:
    from orchestrator.cli.processes import WARM_SECONDS

    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > WARM_SECONDS


def test_every_variable_that_compose_reads_is_in_the_example_and_no_password_is() -> None:
    lines = (ROOT / "deploy/env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text())) <= set(example)
    assert [k for k, v in example.items() if k.endswith("PASSWORD") and v] == []
