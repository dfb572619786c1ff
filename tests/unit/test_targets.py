"""Which servers a plan selects and leaves out."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.clouds.protocol import Server
from orchestrator.domain.seen import SeenServer
from orchestrator.domain.spec import Exclude, Select
from orchestrator.domain.targets import excluded, matches

ID = "9168b536-cd40-4630-b43f-b259807c6e8a"
SERVER = Server(
    id=ID,
    name="web-1",
    status="ACTIVE",
    image="3ed456f5-3d8f-4383-a6c9-312032afcd1a",
    metadata={"role": "web", "team": "a"},
    tags=("blue", "eu"),
    zone="az1",
)


def test_a_clouds_server_has_all_that_a_plan_must_know() -> None:
    facts: SeenServer = SERVER
    assert facts.id == ID


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ({"name": "web-*"}, True),
        ({"name": "web-[0-9]"}, True),
        ({"name": "WEB-*"}, False),
        ({"name": "eb-1"}, False),
        ({"metadata": {"role": "web"}}, True),
        ({"metadata": {"role": "web", "team": "b"}}, False),
        ({"metadata": {"rack": "1"}}, False),
        ({"tags": ["blue", "eu"]}, True),
        ({"tags": ["blue", "us"]}, False),
        ({"availability_zone": ["az2", "az1"]}, True),
        ({"availability_zone": ["az2"]}, False),
        ({"image": "3ED456F5-3d8f-4383-a6c9-312032afcd1a"}, True),
        ({"image": "other"}, False),
        ({"status": ["SHUTOFF", "active"]}, True),
        ({"status": ["ERROR"]}, False),
        ({"name": "web-*", "status": ["ERROR"]}, False),
    ],
)
def test_all_filters_that_are_given_must_match(select: dict[str, Any], expected: bool) -> None:
    assert matches(Select.model_validate(select), SERVER) is expected


def test_a_volume_booted_server_has_no_image_to_be_selected_by() -> None:
    assert not matches(Select(image="3ed456f5"), replace(SERVER, image=None, volume_booted=True))


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ({"servers": [ID.upper()]}, True),
        ({"servers": [ID[:-1] + "0"]}, False),
        ({"metadata": {"role": "db", "team": "a"}}, True),
        ({"metadata": {"role": "db"}}, False),
        ({"tags": ["red", "eu"]}, True),
        ({"tags": ["red"]}, False),
        ({}, False),
    ],
)
def test_one_exclusion_is_enough(exclude: dict[str, Any], expected: bool) -> None:
    assert excluded(Exclude.model_validate(exclude), SERVER) is expected


def test_without_exclusions_nothing_is_left_out() -> None:
    assert not excluded(None, SERVER)
