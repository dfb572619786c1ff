"""Which address a probe goes to, and when its tries are enough."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.probing import Course, Standing, choose_address, kind_of, label_of, wanted_address
from orchestrator.domain.spec.extras import HttpProbe, Probe, TcpProbe


def entry(addr: str, kind: str | None = "fixed") -> dict[str, Any]:
    """As Nova shows one (nova-facts, 1)."""
    shown = {"addr": addr, "version": 6 if ":" in addr else 4, "OS-EXT-IPS-MAC:mac_addr": "fa:16:3e:00:00:01"}
    return shown | ({"OS-EXT-IPS:type": kind} if kind else {})


def tcp(**fields: Any) -> TcpProbe:
    """A probe as a plan file has it."""
    return TcpProbe.model_validate({"port": 22} | fields)


SERVER = {
    "web": [entry("fd00::5"), entry("10.1.0.5"), entry("10.1.0.6"), entry("203.0.113.7", "floating")],
    "admin": [entry("10.9.0.5")],
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, "10.9.0.5"),  # the first network by name, whatever their order
        ({"network": "web"}, "10.1.0.5"),  # the first that Nova lists there
        ({"version": 6}, "fd00::5"),  # the first network that has one
        ({"address": "floating"}, "203.0.113.7"),
        ({"address": "floating", "network": "admin"}, None),
        ({"address": "floating", "version": 6}, None),
        ({"network": "db"}, None),
    ],
)
def test_the_address_is_chosen_by_the_rule(rule: dict[str, Any], expected: str | None) -> None:
    chosen = choose_address(SERVER, tcp(**rule))
    assert (str(chosen.ip) if chosen else None) == expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ({}, None),
        ({"net": None}, None),
        ({"net": "10.0.0.1"}, None),
        ({"net": [None, {"version": 4}, {"addr": "no address", "version": 4}]}, None),
        ({"net": [entry("10.0.0.1", None)]}, "10.0.0.1"),  # the cloud doesn't tell the type
    ],
)
def test_odd_addresses_are_passed_over(addresses: dict[str, Any], expected: str | None) -> None:
    chosen = choose_address(addresses, TcpProbe(port=22))
    assert (str(chosen.ip) if chosen else None) == expected


def test_a_probe_has_a_short_name_and_its_rule_words() -> None:
    assert label_of(kind_of(Probe(tcp=TcpProbe(port=22)))) == "tcp/22"
    assert label_of(kind_of(Probe(http=HttpProbe(port=80, path="/health")))) == "http/80"
    assert wanted_address(TcpProbe(port=22)) == "fixed IPv4 address"
    rule = TcpProbe(port=22, address="floating", version=6, network="web")
    assert wanted_address(rule) == "floating IPv6 address in the network web"


probes = st.builds(
    tcp,
    timeout=st.integers(1, 60).map("{}s".format),
    interval=st.integers(1, 20).map("{}s".format),
    successes=st.integers(1, 4),
)
answers = st.lists(st.tuples(st.booleans(), st.floats(0, 3), st.floats(0, 3)), min_size=130, max_size=130)
"""Of each try: whether it succeeds, how long it waits for its turn, and how long it takes."""


def play(probe: TcpProbe, tries: list[tuple[bool, float, float]]) -> list[tuple[float, float, Course]]:
    """The whole course: (begin of the try, its end, what it left)."""
    course, past = Course.begin(probe, 0.0), []
    for good, waits, takes in tries:
        began = course.next_at + waits
        course = course.tried(None if good else "refused", began=began, now=began + takes)
        past.append((began, began + takes, course))
        if course.standing is not Standing.OPEN:
            return past
    raise AssertionError("the course did not end")


@given(probes, answers)
def test_a_probe_passes_exactly_with_the_needed_successes_in_a_row(
    probe: TcpProbe, tries: list[tuple[bool, float, float]]
) -> None:
    past = play(probe, tries)
    last = [good for good, _, _ in tries[: len(past)]][-probe.successes :]
    enough = len(last) == probe.successes and all(last)
    assert (past[-1][2].standing is Standing.PASSED) == enough
    assert past[-1][2].tries == len(past)


@given(probes, answers)
def test_a_probe_ends_with_its_time_and_is_tried_at_the_end_of_it(
    probe: TcpProbe, tries: list[tuple[bool, float, float]]
) -> None:
    past = play(probe, tries)
    for _, ended, course in past[:-1]:
        assert ended < probe.timeout or course.in_a_row, "it goes on after its time"
        assert course.next_at <= max(probe.timeout, ended)
    began, ended, course = past[-1]
    if course.standing is Standing.FAILED and course.in_a_row == 0:
        assert ended >= probe.timeout, "it failed before its time was over"
    if course.standing is Standing.FAILED and course.in_a_row:
        assert max(began + probe.interval, ended) > probe.timeout


@given(probes, answers)
def test_tries_are_an_interval_apart_but_for_the_last(probe: TcpProbe, tries: list[tuple[bool, float, float]]) -> None:
    past = play(probe, tries)
    for (before, _, _), (began, _, _) in itertools.pairwise(past):
        assert began >= before + probe.interval or began >= probe.timeout


def test_what_a_probe_says_names_its_last_error() -> None:
    course = Course.begin(tcp(timeout="10s", interval="5s", successes=2), 0.0)
    course = course.tried("connection refused", began=0.0, now=0.1).tried(None, began=5.0, now=5.1)
    assert course.says == "not over after 2 tries, 1 of 2 in a row at the end: connection refused"
    assert course.tried(None, began=10.0, now=10.1).says == "passed after 3 tries (2 in a row)"
    late = Course.begin(tcp(timeout="1s", interval="5s", successes=2), 0.0).tried(None, began=0.0, now=0.1)
    assert (late.standing, late.says) == (
        Standing.FAILED,
        "failed after 1 try, 1 of 2 in a row at the end: every try succeeded, but too few came before the timeout",
    )
