"""Whose drift the check before a wipe looks for."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from orchestrator.clouds.protocol import Server
from orchestrator.domain.drift import metadata_digest
from orchestrator.domain.states import JobState
from orchestrator.ledger.drive import ClaimedJob
from workers.driver.check import changed_since
from workers.driver.mirror import View

NOW = datetime(2026, 11, 25, tzinfo=UTC)
SERVER = Server(id="s", name="web", status="ACTIVE", image="other", project_id="p")
JOB = ClaimedJob(
    plan_id=UUID(int=1), ord=0, server_id="s", state=JobState.CHECKING, wave=0, overrides=None,
    target_image="new", attempt=0, refusals=0, busy_since=None, deadline_at=None, name="web", previous_image="old",
    seen_status="ACTIVE", seen_metadata=metadata_digest({}),
)  # fmt: skip


def changed(job: ClaimedJob, server: Server | None = SERVER) -> bool:
    return changed_since(job, View(server=server, seen_at=time.monotonic(), date=NOW)) is not None


def test_a_job_that_was_prepared_earlier_is_compared_before_its_first_call() -> None:
    assert changed(JOB)
    assert not changed(JOB, replace(SERVER, image="old"))


def test_a_plan_that_started_at_once_has_nothing_to_compare_with() -> None:
    assert not changed(replace(JOB, seen_status=None, seen_metadata=None))


def test_a_persons_retry_takes_the_server_as_it_is() -> None:
    assert not changed(replace(JOB, retries=1))


def test_after_a_call_the_change_is_our_own() -> None:
    assert not changed(replace(JOB, attempt=1))


def test_what_a_before_hook_did_while_draining_is_no_drift() -> None:
    assert not changed(replace(JOB, drained_at=NOW))


def test_a_server_that_is_not_shown_is_left_to_the_other_rules() -> None:
    assert not changed(JOB, None)
