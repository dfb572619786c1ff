"""The plan that takes servers back, made of the one that changed them."""

from typing import Any

from orchestrator.domain.rollback import rollback_spec
from orchestrator.domain.spec import parse_spec

A, B, C = (f"00000000-0000-4000-8000-{i:012d}" for i in range(3))


def stored(**changes: Any) -> dict[str, Any]:
    document = {"name": "n", "cloud": "c", "image": "new", "targets": {"servers": [A, B, C]}, **changes}
    return dict(parse_spec(document).without_servers())


def test_pace_failure_policy_and_labels_come_along_and_nothing_of_the_request_does() -> None:
    source = stored(
        rebuild={"name": "{name}-b", "metadata": {"k": "v"}, "reimage_boot_volume": True, "user_data": {"text": "x"}},
        rollout={"max_in_flight": 7, "rate": "2/s", "waves": [{"size": 2}, {"size": "100%"}]},
        failure={"max_errors": 3, "timeout": "9m"}, labels={"team": "web"}, skip_matching=False, hold=True,
    )  # fmt: skip
    spec = rollback_spec(source, "web", [A, B], ["old", "old"], hold=False)
    assert spec.rebuild.model_dump(exclude_defaults=True) == {"reimage_boot_volume": True}
    assert (spec.rollout.max_in_flight, spec.rollout.rate) == (7, 2.0)
    assert (spec.failure.timeout, spec.failure.max_errors.count) == (540.0, 3)
    assert (spec.labels, spec.skip_matching, spec.hold) == ({"team": "web"}, True, False)
    assert (spec.name, spec.cloud) == ("rollback of web", "c")


def test_the_commonest_image_stands_as_the_plans() -> None:
    assert rollback_spec(stored(), "n", [A, B, C], ["x", "y", "y"], hold=True).image == "y"
    assert rollback_spec(stored(), "n", [A], [], hold=True).image == "new"


def test_a_wave_keeps_those_of_its_servers_that_come_along() -> None:
    waves = [{"servers": [A, B]}, {"servers": [C]}, {"size": "100%"}]
    spec = rollback_spec(stored(rollout={"waves": waves}), "n", [B], ["x"], hold=False)
    assert [(w.servers, w.size and str(w.size)) for w in spec.rollout.waves] == [((B,), None), ((), "100%")]


def test_a_long_name_is_cut_to_what_a_plan_may_be_called() -> None:
    assert len(rollback_spec(stored(), "n" * 254, [A], ["x"], hold=False).name) == 254
