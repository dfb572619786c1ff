"""Has a rebuild ended, and how: each ending as a real Nova showed it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.clouds.protocol import Action, ActionEvent, Server
from orchestrator.domain.completion import Ending, Expected, Sight, judge, sight

SENT = datetime(2026, 11, 24, 12, 0, 0, 500_000, tzinfo=UTC)
OLD_BOOT, NEW_BOOT = SENT - timedelta(days=3), SENT + timedelta(seconds=4)
EXPECTED = Expected(status="ACTIVE", image="new", launched_before=OLD_BOOT, accepted_at=SENT)
DONE = Server(id="s", name="web", status="ACTIVE", image="new", launched_at=NEW_BOOT)
UNTOUCHED = replace(DONE, launched_at=OLD_BOOT)


def action(message: str | None, *events: tuple[str, str]) -> Action:
    return Action(
        request_id="req-1", action="rebuild", start_time=SENT, message=message,
        events=tuple(ActionEvent(event=e, result=r, start_time=SENT, finish_time=NEW_BOOT) for e, r in events),
    )  # fmt: skip


GOOD = action(None, ("rebuild_server", "Success"), ("compute_rebuild_instance", "Success"))
BAD = action("Error", ("rebuild_server", "Success"), ("compute_rebuild_instance", "Error"))
OPEN = action(None, ("rebuild_server", "Success"))


def test_done_is_attested_by_image_status_and_a_new_boot() -> None:
    assert sight(EXPECTED, DONE) is Sight.DONE
    assert judge(EXPECTED, DONE, GOOD).ending is Ending.DONE
    assert judge(EXPECTED, DONE, None).ending is Ending.DONE


def test_active_with_the_new_image_proves_nothing_by_itself() -> None:
    """The API writes the image before it answers."""
    assert sight(EXPECTED, UNTOUCHED) is Sight.LOOK
    assert judge(EXPECTED, UNTOUCHED, None).ending is Ending.UNDER_WAY
    assert judge(EXPECTED, UNTOUCHED, OPEN).ending is Ending.UNDER_WAY


@pytest.mark.parametrize("launched", [None, OLD_BOOT, SENT - timedelta(seconds=1)])
def test_a_boot_before_the_call_is_no_proof(launched: datetime | None) -> None:
    assert sight(EXPECTED, replace(DONE, launched_at=launched)) is Sight.LOOK


def test_a_boot_in_the_very_second_of_the_202_counts() -> None:
    """The cloud's `Date` has whole seconds, `launched_at` too."""
    assert sight(EXPECTED, replace(DONE, launched_at=SENT.replace(microsecond=0))) is Sight.DONE


def test_a_server_at_work_is_under_way() -> None:
    working = replace(UNTOUCHED, status="REBUILD", task_state="rebuild_spawning")
    assert sight(EXPECTED, working) is Sight.UNDER_WAY
    assert judge(EXPECTED, working, OPEN).ending is Ending.UNDER_WAY
    assert judge(EXPECTED, replace(working, task_state=None), GOOD).ending is Ending.UNDER_WAY


def test_an_early_failure_looks_done_but_for_the_boot_and_the_action() -> None:
    """The image went between the 202 and the host's start: ACTIVE, the new image, no fault, the action Error."""
    assert sight(EXPECTED, UNTOUCHED) is Sight.LOOK
    judgement = judge(EXPECTED, UNTOUCHED, BAD)
    assert (judgement.ending, judgement.fingerprint) == (Ending.FAILED, "failed_early:0")
    assert judgement.reason is not None
    assert "still holds the old system" in judgement.reason.message


def test_no_valid_host_leaves_the_disk_and_rolls_the_image_back() -> None:
    server = replace(
        UNTOUCHED, status="ERROR", image="old", fault_code=500, fault_message="No valid host was found."
    )  # fmt: skip
    judgement = judge(EXPECTED, server, action("Error", ("rebuild_server", "Error")))
    assert (judgement.ending, judgement.fingerprint) == (Ending.FAILED, "not_scheduled:500")
    assert judgement.reason is not None
    assert judgement.reason.code == "rebuild_not_scheduled"
    assert "No valid host was found." in judgement.reason.message
    assert "untouched" in judgement.reason.message


def test_a_failed_spawn_is_a_failure_with_its_fault() -> None:
    server = replace(UNTOUCHED, status="ERROR", fault_code=500, fault_message="no space left on device")
    assert sight(EXPECTED, server) is Sight.LOOK
    judgement = judge(EXPECTED, server, BAD)
    assert (judgement.ending, judgement.fingerprint) == (Ending.FAILED, "failed_on_host:500")
    assert judgement.reason is not None
    assert "no space left on device" in judgement.reason.message
    assert "most likely gone" in judgement.reason.message


def test_a_killed_compute_leaves_no_verdict() -> None:
    """ERROR without a fault, the action open for ever: the plan's timeout ends it, no guess does."""
    server = replace(UNTOUCHED, status="ERROR")
    assert sight(EXPECTED, server) is Sight.LOOK
    assert judge(EXPECTED, server, OPEN).ending is Ending.UNDER_WAY
    assert judge(EXPECTED, server, None).ending is Ending.UNDER_WAY


def test_an_order_that_failed_after_an_outage_leaves_the_server_in_rebuild() -> None:
    server = replace(UNTOUCHED, status="REBUILD", task_state="rebuilding")
    judgement = judge(EXPECTED, server, BAD)
    assert (judgement.ending, judgement.fingerprint) == (Ending.FAILED, "left_in_rebuild:0")


def test_a_server_that_was_off_ends_off() -> None:
    expected = replace(EXPECTED, status="SHUTOFF")
    off = replace(DONE, status="SHUTOFF")
    assert sight(expected, off) is Sight.DONE
    assert judge(expected, off, GOOD).ending is Ending.DONE
    assert sight(EXPECTED, off) is Sight.LOOK
    assert judge(EXPECTED, off, GOOD).ending is Ending.UNDER_WAY


def test_another_image_than_the_plans_is_a_failure() -> None:
    server = replace(DONE, image="third")
    assert sight(EXPECTED, server) is Sight.LOOK
    judgement = judge(EXPECTED, server, GOOD)
    assert (judgement.ending, judgement.fingerprint) == (Ending.FAILED, "wrong_image")


def test_an_image_id_is_compared_whatever_its_case() -> None:
    assert sight(EXPECTED, replace(DONE, image="NEW")) is Sight.DONE


def test_a_volume_booted_server_shows_no_image() -> None:
    assert sight(EXPECTED, replace(DONE, image=None, volume_booted=True)) is Sight.DONE
    assert sight(EXPECTED, replace(DONE, image=None)) is Sight.LOOK


@pytest.mark.parametrize("server", [None, replace(DONE, status="DELETED"), replace(DONE, status="SOFT_DELETED")])
@pytest.mark.parametrize("seen", [None, GOOD, BAD])
def test_a_deleted_server_is_gone_whatever_the_action_says(server: Server | None, seen: Action | None) -> None:
    assert judge(EXPECTED, server, seen).ending is Ending.GONE


def test_an_unknown_status_is_no_verdict() -> None:
    """UNKNOWN: the host does not answer just now."""
    assert judge(EXPECTED, replace(DONE, status="UNKNOWN"), GOOD).ending is Ending.UNDER_WAY


def test_without_a_baseline_and_a_date_any_boot_will_do() -> None:
    expected = replace(EXPECTED, launched_before=None, accepted_at=None)
    assert sight(expected, UNTOUCHED) is Sight.DONE
    assert sight(expected, replace(UNTOUCHED, launched_at=None)) is Sight.LOOK
