"""`change`, `skip`, `acknowledge` and `clouds pause`: what they send."""

import json

import pytest

from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import PLAN_ID, FakeApi, unresolved_job


def test_change_sends_only_what_is_given_and_wants_something(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("running")
    assert rebuildctl("change", PLAN_ID, "--max-in-flight", "5", "--reason", "slowly").code == 0
    assert rebuildctl("change", PLAN_ID, "--rate", "90/m", "--output", "json").code == 0
    first, second = api.sent("PATCH", f"/v1/plans/{PLAN_ID}")
    assert (first[3], second[3]) == ({"max_in_flight": 5, "reason": "slowly"}, {"rate": "90/m"})
    nothing = rebuildctl("change", PLAN_ID)
    assert (nothing.code, "--max-in-flight" in nothing.err) == (2, True)


@pytest.mark.parametrize("action", ["skip", "acknowledge"])
def test_each_server_is_named_in_a_call_of_its_own(api: FakeApi, rebuildctl: Rebuildctl, action: str) -> None:
    api.play("running")
    api.jobs = [unresolved_job("s-1"), unresolved_job("s-2")]
    result = rebuildctl(action, PLAN_ID, "s-1", "s-2", "--reason", "host replaced", "--output", "json")
    assert (result.code, [j["server_id"] for j in json.loads(result.out)["items"]]) == (0, ["s-1", "s-2"])
    for server in ("s-1", "s-2"):
        (sent,) = api.sent("POST", f"/v1/plans/{PLAN_ID}/jobs/{server}/{action}")
        assert sent[3] == {"reason": "host replaced"}


def test_a_cloud_is_stopped_by_its_name(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    result = rebuildctl("clouds", "pause", "prod", "--reason", "storage is failing")
    assert (result.code, "prod: paused" in result.out) == (0, True)
    assert [r[3] for r in api.sent("POST", "/v1/clouds/prod/pause")] == [{"reason": "storage is failing"}]
    assert "prod: resumed" in rebuildctl("clouds", "resume", "prod").out
