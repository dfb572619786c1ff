"""What counts as a change between preparing and the first send."""

from dataclasses import replace

import pytest

from orchestrator.clouds.protocol import Server
from orchestrator.domain.drift import Prepared, drift, drifted, metadata_digest
from orchestrator.domain.evidence import MARKER

SERVER = Server(id="s", name="web", status="ACTIVE", image="old", project_id="p", metadata={"tier": "db", "a": "b"})
SEEN = Prepared(image="old", name="web", status="ACTIVE", metadata=metadata_digest({"a": "b", "tier": "db"}))


def test_a_server_that_is_as_it_was_has_not_drifted() -> None:
    assert drift(SEEN, SERVER) is None
    assert drift(SEEN, replace(SERVER, tags=("new",), zone="az9", host="h9")) is None


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (replace(SERVER, image="other"), "its image is other, no longer old"),
        (replace(SERVER, image=None, volume_booted=True), "its image is a volume, no longer old"),
        (replace(SERVER, name="db"), "its name is 'db', no longer 'web'"),
        (replace(SERVER, status="SHUTOFF"), "its status is SHUTOFF, no longer ACTIVE"),
        (replace(SERVER, metadata={"tier": "db"}), "its metadata was changed"),
        (replace(SERVER, status="ERROR", name="x"), "its name is 'x', no longer 'web'; its status is ERROR, no longer"),
        (replace(SERVER, status="DELETED"), "the server is gone"),
        (None, "the server is gone"),
    ],
)
def test_what_changed_is_said(server: Server | None, said: str) -> None:
    assert (drift(SEEN, server) or "").startswith(said)


def test_a_server_whose_cell_is_down_has_not_changed() -> None:
    assert drift(SEEN, Server(id="s", name="", status="UNKNOWN", image=None, project_id="p")) is None


def test_our_own_marker_is_no_change() -> None:
    assert drift(SEEN, replace(SERVER, metadata={**SERVER.metadata, MARKER: "p/1"})) is None


@pytest.mark.parametrize("passing", ["REBOOT", "REBUILD", "UNKNOWN"])
def test_a_status_that_passes_is_waited_for_then_and_now(passing: str) -> None:
    assert drift(SEEN, replace(SERVER, status=passing)) is None
    assert drift(replace(SEEN, status=passing), SERVER) is None


def test_the_reason_says_what_changed_and_the_way_out() -> None:
    reason = drifted("its image is other")
    assert reason.code == "drift"
    assert "its image is other" in reason.message
    assert "Retry" in reason.message
