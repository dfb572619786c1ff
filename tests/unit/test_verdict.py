"""Whether a server may be rebuilt at all."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.clouds.protocol import Server
from orchestrator.domain.verdict import STANDING, Limits, busy, refusal, too_small

SERVER = Server(id="s", name="web", status="ACTIVE", image="old", project_id="p", metadata={"tier": "db"}, tags=("x",))
LIMITS = Limits(project_id="p")


def code(server: Server | None, limits: Limits = LIMITS, *, reimage: bool = False) -> str | None:
    reason = refusal(server, limits, reimage_boot_volume=reimage)
    return None if reason is None else reason.code


@pytest.mark.parametrize("status", ["ACTIVE", "SHUTOFF", "ERROR"])
def test_nova_rebuilds_from_these(status: str) -> None:
    assert code(replace(SERVER, status=status)) is None
    assert busy(replace(SERVER, status=status)) is None


@pytest.mark.parametrize("status", sorted(STANDING))
def test_a_status_that_stays_is_refused(status: str) -> None:
    assert code(replace(SERVER, status=status)) == "wrong_state"


@pytest.mark.parametrize("status", ["BUILD", "REBUILD", "REBOOT", "RESIZE", "VERIFY_RESIZE", "MIGRATING", "UNKNOWN"])
def test_a_status_that_passes_is_busy_and_not_refused(status: str) -> None:
    server = replace(SERVER, status=status)
    reason = busy(server)
    assert code(server) is None
    assert reason is not None
    assert (reason.code, status in reason.message) == ("busy", True)


def test_a_task_makes_a_server_busy() -> None:
    reason = busy(replace(SERVER, task_state="image_snapshot"))
    assert reason is not None
    assert "image_snapshot" in reason.message


@pytest.mark.parametrize("server", [None, replace(SERVER, status="DELETED"), replace(SERVER, status="SOFT_DELETED")])
def test_a_deleted_server_is_unknown(server: Server | None) -> None:
    assert code(server) == "unknown_server"


def test_another_projects_server_is_refused_first_of_all() -> None:
    assert code(replace(SERVER, project_id="q", locked=True)) == "other_project"
    assert code(replace(SERVER, project_id=None)) is None


def test_a_locked_server_is_refused() -> None:
    assert code(replace(SERVER, locked=True)) == "locked"


def test_protected_servers_are_refused_by_metadata_and_by_tag() -> None:
    assert code(SERVER, replace(LIMITS, protect_metadata={"tier": "db"})) == "protected"
    assert code(SERVER, replace(LIMITS, protect_metadata={"tier": "web"})) is None
    assert code(SERVER, replace(LIMITS, protect_tags=("y", "x"))) == "protected"
    assert code(SERVER, replace(LIMITS, protect_tags=("y",))) is None


def test_a_server_in_error_is_refused_where_the_cloud_cannot_rebuild_it() -> None:
    assert code(replace(SERVER, status="ERROR"), replace(LIMITS, error_rebuild=False)) == "error_status"
    assert code(SERVER, replace(LIMITS, error_rebuild=False)) is None


def test_a_boot_volume_is_wiped_only_with_consent() -> None:
    server = replace(SERVER, image=None, volume_booted=True)
    assert code(server) == "volume_booted"
    assert code(server, reimage=True) is None


@pytest.mark.parametrize(
    ("flavor", "volume", "short"),
    [
        ({"disk": 20, "ram": 2048}, False, ""),
        ({"disk": 19, "ram": 2048}, False, "disk of 19 GiB"),
        ({"disk": 20, "ram": 2047}, False, "2047 MiB"),
        ({"disk": 1, "ram": 1}, False, "disk of 1 GiB"),
        ({"disk": 0, "ram": 2048}, False, ""),
        ({"disk": 1, "ram": 2048}, True, ""),
        ({"disk": 0, "ram": 1}, True, "1 MiB"),
        ({"id": "before 2.47"}, False, ""),
    ],
)
def test_an_image_that_a_flavor_is_too_small_for(flavor: dict[str, Any], short: str, *, volume: bool) -> None:
    """A disk of 0 is any size; a volume's size isn't the flavor's."""
    reason = too_small(flavor, min_disk=20, min_ram=2048, volume_booted=volume)
    assert (reason.code if reason else "") == ("flavor_too_small" if short else "")
    assert short in (reason.message if reason else "")
