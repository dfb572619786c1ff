"""`clone`, `rollback` and `preview` of a plan that is there already."""

from tests.cli.conftest import Rebuildctl
from tests.cli.fake_api import OTHER_ID, PLAN_ID, FakeApi, counts, plan_document
from tests.cli.test_terminal import Terminal

READY = plan_document("ready", OTHER_ID, counts=counts(pending=3, refused=1), rollback_of=PLAN_ID)
GONE = "what was on the disks is gone"


def sent(api: FakeApi, action: str) -> list[object]:
    return [body for _, _, _, body in api.sent("POST", f"/v1/plans/{PLAN_ID}/{action}")]


def test_preview_of_a_plan_clones_it_and_shows_what_it_would_do(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("succeeded")
    api.copy, api.plans[OTHER_ID] = OTHER_ID, [plan_document("preparing", OTHER_ID), READY]
    result = rebuildctl("preview", PLAN_ID)
    assert result.code == 8
    assert "3 to rebuild, 0 to skip, 1 refused, of 4 servers" in result.out
    assert f"rebuildctl start {OTHER_ID}" in result.out
    assert sent(api, "clone") == [{"reason": "previewed"}]
    assert not api.sent("POST", "/v1/plans")


def test_clone_says_how_it_is_started(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("succeeded")
    api.copy, api.plans[OTHER_ID] = OTHER_ID, [READY]
    result = rebuildctl("clone", PLAN_ID, "--reason", "again")
    assert result.code == 0
    assert f"rebuildctl start {OTHER_ID}" in result.out
    assert sent(api, "clone") == [{"reason": "again"}]


def test_rollback_without_a_terminal_runs_and_waits_for_the_new_plan(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("succeeded")
    api.copy = OTHER_ID
    api.plans[OTHER_ID] = [plan_document("preparing", OTHER_ID), plan_document("succeeded", OTHER_ID)]
    result = rebuildctl("rollback", PLAN_ID, "--servers", "a,b", "--servers", "c", "--reason", "bad", "--wait")
    assert result.code == 0
    assert f"Plan {OTHER_ID}" in result.out
    assert GONE in result.err
    assert sent(api, "rollback") == [{"servers": ["a", "b", "c"], "reason": "bad"}]


def test_rollback_can_be_previewed(api: FakeApi, rebuildctl: Rebuildctl) -> None:
    api.play("succeeded")
    api.copy, api.plans[OTHER_ID] = OTHER_ID, [READY]
    assert rebuildctl("rollback", PLAN_ID, "--preview").code == 8
    assert sent(api, "rollback") == [{"hold": True}]
    assert not api.sent("POST", f"/v1/plans/{OTHER_ID}/start")


async def test_on_a_terminal_rollback_says_that_the_data_is_gone_and_asks(api: FakeApi) -> None:
    api.play("succeeded")
    api.copy, api.plans[OTHER_ID] = OTHER_ID, [READY, READY, plan_document("running", OTHER_ID)]
    async with Terminal(("rollback", PLAN_ID)) as terminal:
        await terminal.sees(GONE)
        await terminal.sees("3 to rebuild")
        await terminal.sees("Start? [y/N]")
        assert not api.sent("POST", f"/v1/plans/{OTHER_ID}/start")
        terminal.types("y\n")
        assert await terminal.ends() == 0
    assert sent(api, "rollback") == [{"hold": True}]
    assert [body for _, _, _, body in api.sent("POST", f"/v1/plans/{OTHER_ID}/start")] == [{"digest": "d1"}]
