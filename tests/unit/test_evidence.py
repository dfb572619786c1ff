"""What became of a call whose answer proves nothing: what shows an effect comes before any silence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.causes import Cause
from orchestrator.domain.evidence import (
    CLOCKS,
    MARKER,
    NEEDED_404,
    NEEDED_LOOKS,
    Case,
    Finding,
    Look,
    Open,
    Settlement,
    Weighed,
    marked,
    marker_of,
    own_rebuilds,
    settle,
    weigh,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MARK = NOW - timedelta(minutes=1)
BOOTED = NOW - timedelta(days=30)
SECOND = timedelta(seconds=1)
PLAN = UUID("01938f4e-0000-7000-8000-000000000001")
OURS = marker_of(PLAN, 2)


@dataclass(frozen=True, kw_only=True)
class Server:
    status: str = "ACTIVE"
    task_state: str | None = None
    image: str | None = "new"
    metadata: Mapping[str, str] = field(default_factory=dict)
    launched_at: datetime | None = BOOTED


@dataclass(frozen=True, kw_only=True)
class Action:
    request_id: str = "req-9"
    action: str = "rebuild"
    start_time: datetime = NOW
    user_id: str | None = "me"


CASE = Case(cause=Cause.NO_ANSWER, marker=OURS, since=MARK, user_id="me", known_actions=frozenset({"req-old"}),
            launched_before=BOOTED, target_image="new")  # fmt: skip
BARE = replace(CASE, marker=None)
"""A call without a marker."""
NOVAS_500 = replace(CASE, cause=Cause.SERVER_ERROR, http_status=500, request_id="req-1")
CONFLICT = replace(CASE, cause=Cause.BUSY, http_status=409, request_id="req-1")


def seen(*actions: Action, offered: bool = True, **server: object) -> Look:
    return Look(server=Server(**server), actions=list(actions) if offered else None)


def with_marker(value: str = OURS) -> Mapping[str, str]:
    return {MARKER: value, "role": "web"}


class TestMarkers:
    def test_a_marker_names_plan_and_attempt(self) -> None:
        assert marked(OURS) == (PLAN, 2)

    @pytest.mark.parametrize("value", [None, "", "x", f"{PLAN}", f"{PLAN}/", f"{PLAN}/two", "1/2"])
    def test_anything_else_is_none(self, value: str | None) -> None:
        assert marked(value) is None


class TestTracesThatProveAnEffect:
    def test_an_action_with_the_answers_request_id(self) -> None:
        weighed = weigh(NOVAS_500, seen(Action(request_id="req-1")))
        assert (weighed.finding, weighed.request_id, weighed.traces) == (Finding.APPLIED, "req-1", True)

    def test_the_answers_request_id_counts_whoever_and_whenever_it_is_dated(self) -> None:
        action = Action(request_id="req-1", user_id="someone", start_time=MARK - timedelta(days=1))
        assert weigh(NOVAS_500, seen(action, Action(), Action(request_id="req-8"))).finding is Finding.APPLIED

    def test_the_marker_and_with_it_the_only_action_that_can_be_its_own(self) -> None:
        weighed = weigh(CASE, seen(Action(), metadata=with_marker()))
        assert (weighed.finding, weighed.request_id, weighed.traces) == (Finding.APPLIED, "req-9", True)

    def test_the_marker_though_two_actions_could_be_its_own(self) -> None:
        weighed = weigh(CASE, seen(Action(), Action(request_id="req-8"), metadata=with_marker()))
        assert (weighed.finding, weighed.request_id) == (Finding.APPLIED, None)

    @pytest.mark.parametrize("status", ["UNKNOWN", "ERROR", "REBUILD", "SHUTOFF"])
    def test_the_marker_whatever_the_server_is_at(self, status: str) -> None:
        look = seen(status=status, task_state="rebuilding", metadata=with_marker(), offered=False)
        assert weigh(CASE, look).finding is Finding.APPLIED

    @pytest.mark.parametrize("value", [marker_of(PLAN, 1), marker_of(UUID(int=7), 2), "x"])
    def test_another_marker_proves_nothing(self, value: str) -> None:
        assert weigh(CASE, seen(metadata=with_marker(value))).finding is Finding.NOTHING

    def test_a_marker_that_the_call_did_not_carry_proves_nothing(self) -> None:
        assert weigh(BARE, seen(metadata=with_marker())).finding is Finding.NOTHING

    def test_one_unaccounted_rebuild_of_ours_since_the_mark(self) -> None:
        weighed = weigh(BARE, seen(Action(), Action(request_id="req-old"), Action(request_id="r", action="reboot")))
        assert (weighed.finding, weighed.request_id, weighed.traces) == (Finding.APPLIED, "req-9", True)

    def test_a_new_boot_with_the_target_image_where_the_cloud_shows_no_actions(self) -> None:
        weighed = weigh(CASE, seen(offered=False, launched_at=NOW, image="NEW"))
        assert (weighed.finding, weighed.request_id, weighed.traces) == (Finding.APPLIED, None, True)

    def test_a_first_boot_counts_as_a_new_one(self) -> None:
        look = seen(offered=False, launched_at=NOW)
        assert weigh(replace(CASE, launched_before=None), look).finding is Finding.APPLIED


class TestTracesThatContradict:
    def test_two_unaccounted_rebuilds_of_ours_settle_nothing(self) -> None:
        weighed = weigh(BARE, seen(Action(), Action(request_id="req-8")))
        assert (weighed.finding, weighed.request_id, weighed.traces) == (Finding.OPEN, None, True)

    @pytest.mark.parametrize("case", [CASE, BARE, NOVAS_500, CONFLICT])
    def test_a_new_boot_that_no_action_explains_settles_nothing(self, case: Case) -> None:
        weighed = weigh(case, seen(launched_at=NOW))
        assert (weighed.finding, weighed.traces) == (Finding.OPEN, True)

    @pytest.mark.parametrize("image", ["old", None])
    def test_a_new_boot_with_another_image_settles_nothing(self, image: str | None) -> None:
        weighed = weigh(CASE, seen(offered=False, launched_at=NOW, image=image))
        assert (weighed.finding, weighed.traces) == (Finding.OPEN, True)


class TestActionsThatAreNotTheCalls:
    @pytest.mark.parametrize(
        "action",
        [
            Action(user_id="someone"),
            Action(start_time=MARK - CLOCKS - SECOND),
            Action(request_id="req-old"),
            Action(action="reboot"),
        ],
    )
    def test_another_users_one_before_the_mark_a_known_one_and_no_rebuild(self, action: Action) -> None:
        assert own_rebuilds(CASE, [action]) == []
        weighed = weigh(CASE, seen(action))
        assert (weighed.finding, weighed.traces) == (Finding.NOTHING, False)

    def test_the_clouds_clocks_may_differ_a_little(self) -> None:
        action = Action(start_time=MARK - CLOCKS)
        assert own_rebuilds(CASE, [action]) == [action]

    def test_what_is_not_known_excludes_nothing(self) -> None:
        """Without a mark, our user id or the action's, a rebuild may be ours: it is not called silence."""
        ancient = Action(start_time=MARK - timedelta(days=9))
        assert own_rebuilds(replace(CASE, since=None), [ancient]) == [ancient]
        nobodys = Action(user_id=None)
        assert own_rebuilds(CASE, [nobodys]) == [nobodys]
        others = Action(user_id="someone")
        assert own_rebuilds(replace(CASE, user_id=None), [others]) == [others]


class TestSilence:
    def test_a_healthy_look_without_a_trace(self) -> None:
        weighed = weigh(CASE, seen())
        assert (weighed.finding, weighed.traces) == (Finding.NOTHING, False)

    def test_either_marker_or_actions_are_enough_for_silence_to_count(self) -> None:
        assert weigh(CASE, seen(offered=False)).finding is Finding.NOTHING
        assert weigh(BARE, seen()).finding is Finding.NOTHING

    def test_without_marker_and_actions_silence_proves_nothing(self) -> None:
        weighed = weigh(BARE, seen(offered=False))
        assert (weighed.finding, weighed.traces) == (Finding.OPEN, False)

    def test_a_boot_that_was_there_before_is_none_since(self) -> None:
        for launched in (BOOTED, BOOTED - SECOND, None):
            assert weigh(CASE, seen(launched_at=launched)).finding is Finding.NOTHING

    @pytest.mark.parametrize("case", [CASE, BARE, NOVAS_500, CONFLICT])
    def test_a_server_whose_cell_is_down_is_not_seen(self, case: Case) -> None:
        assert weigh(case, seen(status="UNKNOWN")).finding is Finding.UNSEEN

    @pytest.mark.parametrize("case", [CASE, BARE, NOVAS_500])
    @pytest.mark.parametrize(("status", "task"), [("REBUILD", None), ("ACTIVE", "rebuilding"), ("ACTIVE", "rebooting")])
    def test_a_server_at_something_is_not_seen(self, case: Case, status: str, task: str | None) -> None:
        assert weigh(case, seen(status=status, task_state=task)).finding is Finding.UNSEEN

    @pytest.mark.parametrize("case", [CASE, BARE, NOVAS_500, CONFLICT])
    def test_a_404_is_no_proof_of_anything_yet(self, case: Case) -> None:
        weighed = weigh(case, Look(server=None, actions=None))
        assert (weighed.finding, weighed.certain, weighed.traces) == (Finding.GONE, False, False)

    @pytest.mark.parametrize("status", ["DELETED", "SOFT_DELETED"])
    def test_a_server_that_is_shown_as_deleted_is_surely_gone(self, status: str) -> None:
        weighed = weigh(CASE, seen(Action(), status=status, metadata=with_marker()))
        assert (weighed.finding, weighed.certain) == (Finding.GONE, True)


class TestAnswersThatNarrowItDown:
    def test_a_500_of_nova_itself_without_an_action_of_its_request_had_no_effect(self) -> None:
        weighed = weigh(NOVAS_500, seen())
        assert (weighed.finding, weighed.traces) == (Finding.NOT_APPLIED, False)
        assert {"kind": "request_id", "value": "no action"} in weighed.evidence

    def test_a_500_of_nova_itself_is_settled_by_the_marker_or_another_action_all_the_same(self) -> None:
        assert weigh(NOVAS_500, seen(metadata=with_marker())).finding is Finding.APPLIED
        assert weigh(NOVAS_500, seen(Action())).finding is Finding.APPLIED

    def test_a_500_proves_nothing_where_the_cloud_shows_no_actions(self) -> None:
        assert weigh(NOVAS_500, seen(offered=False)).finding is Finding.NOTHING

    @pytest.mark.parametrize("status", [502, 503, 504, None])
    def test_a_gateways_error_proves_nothing_though_it_carries_a_request_id(self, status: int | None) -> None:
        assert weigh(replace(NOVAS_500, http_status=status), seen()).finding is Finding.NOTHING

    def test_a_500_without_a_request_id_proves_nothing(self) -> None:
        assert weigh(replace(NOVAS_500, request_id=None), seen()).finding is Finding.NOTHING

    def test_a_409_with_the_calls_own_marker_came_from_a_copy_of_it(self) -> None:
        assert weigh(CONFLICT, seen(metadata=with_marker())).finding is Finding.APPLIED
        assert weigh(CONFLICT, seen(Action())).finding is Finding.APPLIED

    @pytest.mark.parametrize(("status", "task"), [("ACTIVE", None), ("REBUILD", None), ("ACTIVE", "rebuilding")])
    @pytest.mark.parametrize(
        ("case", "offered"), [(CONFLICT, True), (CONFLICT, False), (replace(CONFLICT, marker=None), True)]
    )
    def test_a_409_that_nothing_of_ours_explains_had_no_effect(
        self, case: Case, offered: bool, status: str, task: str | None
    ) -> None:
        look = seen(status=status, task_state=task, offered=offered, metadata=with_marker(marker_of(UUID(int=7), 1)))
        assert weigh(case, look).finding is Finding.NOT_APPLIED

    def test_a_409_settles_nothing_without_marker_and_actions(self) -> None:
        case = replace(CONFLICT, marker=None)
        assert weigh(case, seen(offered=False)).finding is Finding.OPEN
        assert weigh(case, seen(offered=False, status="REBUILD")).finding is Finding.UNSEEN


def test_the_evidence_says_what_was_seen() -> None:
    shown, actions, marker = weigh(CASE, seen(Action(), metadata=with_marker())).evidence
    assert shown["value"] == {"status": "ACTIVE", "task_state": None, "image": "new",
                              "launched_at": BOOTED.isoformat(), "marker": OURS}  # fmt: skip
    assert actions == {"kind": "actions", "value": ["req-9"]}
    assert marker == {"kind": "marker", "value": OURS}
    assert weigh(CASE, seen(offered=False)).evidence[1] == {"kind": "actions", "value": "not offered"}


QUIET = NOW + timedelta(minutes=10)
DEADLINE = NOW + timedelta(minutes=30)
OPEN = Open(quiet_at=QUIET, deadline_at=DEADLINE)
RESEND = replace(OPEN, resend=True)


def found(finding: Finding, *, certain: bool = False) -> Weighed:
    return Weighed(finding=finding, certain=certain)


def settled(open_: Open, *looks: tuple[Finding, datetime]) -> list[Settlement]:
    """What each look in turn led to."""
    said = []
    for finding, now in looks:
        settlement, open_ = settle(open_, found(finding), now)
        said.append(settlement)
    return said


class TestSettling:
    @pytest.mark.parametrize("open_", [OPEN, RESEND])
    @pytest.mark.parametrize("now", [NOW, QUIET, DEADLINE + SECOND])
    def test_proofs_count_at_once(self, open_: Open, now: datetime) -> None:
        assert settled(open_, (Finding.APPLIED, now)) == [Settlement.APPLIED]
        assert settled(open_, (Finding.NOT_APPLIED, now)) == [Settlement.NOT_APPLIED]
        assert settle(open_, found(Finding.GONE, certain=True), now)[0] is Settlement.GONE

    @pytest.mark.parametrize("open_", [OPEN, RESEND])
    @pytest.mark.parametrize("finding", [Finding.NOTHING, Finding.OPEN, Finding.UNSEEN])
    def test_before_the_quiescence_period_is_over_everything_else_waits_and_counts_nothing(
        self, open_: Open, finding: Finding
    ) -> None:
        before = QUIET - timedelta(microseconds=1)
        assert set(settled(open_, *[(finding, before)] * 9)) == {Settlement.WAIT}
        _, kept = settle(open_, found(finding), before)
        assert kept.looks == 0
        if finding is not Finding.UNSEEN:
            assert settle(kept, found(finding), QUIET)[0] is Settlement.WAIT

    @pytest.mark.parametrize(("open_", "end"), [(OPEN, Settlement.UNRESOLVED), (RESEND, Settlement.NOT_APPLIED)])
    def test_silence_counts_when_it_was_heard_in_a_row_after_it(self, open_: Open, end: Settlement) -> None:
        looks = [(Finding.NOTHING, QUIET)] * NEEDED_LOOKS
        assert settled(open_, *looks) == [Settlement.WAIT] * (NEEDED_LOOKS - 1) + [end]

    @pytest.mark.parametrize("between", [Finding.UNSEEN, Finding.GONE, Finding.OPEN])
    def test_another_look_in_between_begins_the_count_anew(self, between: Finding) -> None:
        looks = [Finding.NOTHING, between, Finding.NOTHING, Finding.NOTHING]
        assert settled(RESEND, *((f, QUIET) for f in looks)) == [
            Settlement.WAIT, Settlement.WAIT, Settlement.WAIT, Settlement.NOT_APPLIED]  # fmt: skip

    def test_a_failed_read_in_between_begins_the_count_anew(self) -> None:
        _, kept = settle(RESEND, found(Finding.NOTHING), QUIET)
        settlement, kept = settle(kept.counted(None), found(Finding.NOTHING), QUIET)
        assert (settlement, kept.looks) == (Settlement.WAIT, 1)

    @pytest.mark.parametrize("open_", [OPEN, RESEND])
    def test_contradictions_ask_a_person_and_are_never_sent_again(self, open_: Open) -> None:
        assert settled(open_, *[(Finding.OPEN, QUIET)] * 2) == [Settlement.WAIT, Settlement.UNRESOLVED]

    @pytest.mark.parametrize("open_", [OPEN, RESEND])
    def test_a_server_that_cannot_be_looked_into_is_waited_for_until_the_deadline_and_then_a_person_is_asked(
        self, open_: Open
    ) -> None:
        assert set(settled(open_, *[(Finding.UNSEEN, DEADLINE - SECOND)] * 9)) == {Settlement.WAIT}
        assert settled(open_, (Finding.UNSEEN, DEADLINE)) == [Settlement.UNRESOLVED]
        late = replace(open_, quiet_at=DEADLINE + SECOND)
        assert settled(late, (Finding.UNSEEN, DEADLINE)) == [Settlement.WAIT]

    def test_a_404_is_not_believed_before_the_quiescence_period_is_over(self) -> None:
        looks = [(Finding.GONE, QUIET - SECOND)] * 9
        assert settled(OPEN, *looks, (Finding.GONE, QUIET)) == [*[Settlement.WAIT] * 9, Settlement.GONE]

    @pytest.mark.parametrize("now", [QUIET, DEADLINE])
    def test_a_404_is_believed_when_it_was_said_often_enough_in_a_row(self, now: datetime) -> None:
        waits = [Settlement.WAIT] * (NEEDED_404 - 1)
        assert settled(RESEND, *[(Finding.GONE, now)] * NEEDED_404) == [*waits, Settlement.GONE]
        looks = [Finding.GONE, Finding.UNSEEN, *[Finding.GONE] * (NEEDED_404 - 1)]
        assert Settlement.GONE not in settled(replace(OPEN, deadline_at=DEADLINE + SECOND), *((f, now) for f in looks))


ids = st.sampled_from(["req-1", "req-2", "req-3", "req-old"])
times = st.sampled_from([BOOTED, MARK - CLOCKS - SECOND, MARK - CLOCKS, MARK, NOW])
users = st.sampled_from([None, "me", "someone"])
markers = st.sampled_from([OURS, marker_of(PLAN, 1), marker_of(UUID(int=7), 2)])
servers = st.builds(
    Server, status=st.sampled_from(["ACTIVE", "SHUTOFF", "ERROR", "REBUILD", "UNKNOWN", "DELETED"]),
    task_state=st.sampled_from([None, "rebuilding", "rebooting"]), image=st.sampled_from([None, "new", "old"]),
    metadata=st.one_of(st.just({}), markers.map(with_marker)), launched_at=st.none() | times,
)  # fmt: skip
actions = st.builds(
    Action, request_id=ids, action=st.sampled_from(["rebuild", "reboot"]), start_time=times, user_id=users
)
looks = st.builds(Look, server=st.none() | servers, actions=st.none() | st.lists(actions, max_size=4))
cases = st.builds(
    Case, cause=st.sampled_from(Cause), http_status=st.sampled_from([None, 409, 500, 502, 504]),
    request_id=st.none() | ids, marker=st.none() | markers, since=st.none() | times, user_id=users,
    known_actions=st.frozensets(ids), launched_before=st.none() | times, target_image=st.sampled_from(["new", "other"]),
)  # fmt: skip


def _traces(case: Case, look: Look) -> bool:
    """Said anew: whether the marker or an action that may be the call's is to be seen."""
    if look.server is None:
        return False
    marker = case.marker is not None and look.server.metadata.get(MARKER) == case.marker
    return marker or any(
        a.request_id == case.request_id
        or (a.action == "rebuild" and a.request_id not in case.known_actions
            and (case.since is None or a.start_time + CLOCKS >= case.since)
            and (None in (a.user_id, case.user_id) or a.user_id == case.user_id))
        for a in look.actions or ()
    )  # fmt: skip


@given(cases, looks)
def test_nothing_is_called_not_applied_or_silent_while_the_marker_or_a_matching_action_is_seen(
    case: Case, look: Look
) -> None:
    weighed = weigh(case, look)
    if _traces(case, look):
        assert weighed.finding in (Finding.APPLIED, Finding.OPEN, Finding.GONE)
        assert weighed.traces or weighed.certain
    if weighed.finding in (Finding.NOT_APPLIED, Finding.NOTHING):
        assert not weighed.traces
        assert look.healthy
    if weighed.finding is Finding.NOT_APPLIED:
        assert case.marker is not None or look.actions is not None
        assert case.turned_away or (case.http_status == 500 and case.request_id is not None)


moments = st.integers(min_value=-5, max_value=35).map(lambda minutes: NOW + timedelta(minutes=minutes))


@given(st.booleans(), st.lists(st.tuples(st.sampled_from(Finding), moments), max_size=12))
def test_only_a_proof_or_allowed_silence_in_a_row_after_the_quiescence_period_leads_to_another_call(
    resend: bool, history: list[tuple[Finding, datetime]]
) -> None:
    open_ = replace(OPEN, resend=resend)
    for i, (finding, now) in enumerate(history):
        settlement, open_ = settle(open_, found(finding), now)
        if settlement is Settlement.NOT_APPLIED and finding is not Finding.NOT_APPLIED:
            assert resend
            heard = history[i - NEEDED_LOOKS + 1 : i + 1]
            assert len(heard) == NEEDED_LOOKS
            assert all(f is Finding.NOTHING and at >= QUIET for f, at in heard)
        if settlement is Settlement.APPLIED:
            assert finding is Finding.APPLIED
