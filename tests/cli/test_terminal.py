"""On a terminal: what is shown, what is asked, and what the answer does."""

import asyncio
import os
import pty
import re
import sys
from dataclasses import dataclass, field
from typing import Self

import pytest

from tests.cli.fake_api import PLAN_ID, FakeApi, counts, plan_document
from tests.parts import eventually

READY = plan_document("ready", counts=counts(pending=3, skipped=1))


@dataclass
class Terminal:
    """rebuildctl on a pseudo-terminal of 80 columns."""

    arguments: tuple[str, ...]
    shown: bytearray = field(default_factory=bytearray)

    async def __aenter__(self) -> Self:
        self.main, side = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "LINES": "40"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orchestrator.cli", *self.arguments, stdin=side, stdout=side, stderr=side, env=env,
            start_new_session=True,
        )  # fmt: skip
        os.close(side)
        asyncio.get_running_loop().add_reader(self.main, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.main)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        os.close(self.main)

    def _read(self) -> None:
        try:
            self.shown += os.read(self.main, 65536)
        except OSError:  # the other side has been closed
            asyncio.get_running_loop().remove_reader(self.main)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace"))

    async def sees(self, text: str) -> None:
        def check() -> bool:
            assert text in self.text
            return True

        await eventually(check, deadline=20)

    def types(self, text: str) -> None:
        os.write(self.main, text.encode())

    async def ends(self) -> int:
        code = await asyncio.wait_for(self.process.wait(), 20)
        await asyncio.sleep(0)
        return code


async def test_submit_shows_the_counts_and_starts_exactly_that_on_yes(api: FakeApi, plan_file: str) -> None:
    ended = plan_document("succeeded", counts=counts(succeeded=3, skipped=1))
    api.play("preparing", READY, "running", "running", ended)
    async with Terminal(("submit", plan_file, "--wait")) as terminal:
        await terminal.sees("3 to rebuild, 1 to skip, 0 refused, of 4 servers")
        await terminal.sees("Start? [y/N]")
        assert not api.sent("POST", f"/v1/plans/{PLAN_ID}/start")
        terminal.types("y\n")
        assert await terminal.ends() == 0
        await terminal.sees("succeeded: 4 servers: 3 succeeded, 1 skipped")
    assert api.sent("POST", "/v1/plans")[0][3]["hold"] is True
    assert api.sent("POST", f"/v1/plans/{PLAN_ID}/start")[0][3] == {"digest": "d1"}


async def test_a_no_cancels_the_held_plan(api: FakeApi, plan_file: str) -> None:
    api.play(READY, READY, plan_document("cancelled"))
    async with Terminal(("submit", plan_file)) as terminal:
        await terminal.sees("Start? [y/N]")
        terminal.types("n\n")
        assert await terminal.ends() == 5
        await terminal.sees("Cancelled; nothing was rebuilt.")
    assert api.sent("POST", f"/v1/plans/{PLAN_ID}/cancel")
    assert not api.sent("POST", f"/v1/plans/{PLAN_ID}/start")


async def test_ctrl_c_at_the_question_starts_nothing_and_keeps_the_preview(api: FakeApi, plan_file: str) -> None:
    api.play(READY)
    async with Terminal(("submit", plan_file)) as terminal:
        await terminal.sees("Start? [y/N]")
        terminal.process.send_signal(2)
        assert await terminal.ends() == 130
        await terminal.sees(f"rebuildctl start {PLAN_ID}")
    assert [r[1] for r in api.requests if r[0] == "POST"] == ["/v1/plans"]


async def test_yes_does_not_ask(api: FakeApi, plan_file: str) -> None:
    api.play("running")
    async with Terminal(("submit", plan_file, "--yes")) as terminal:
        assert await terminal.ends() == 0
        await terminal.sees(f"Plan {PLAN_ID}")
    assert "hold" not in api.sent("POST", "/v1/plans")[0][3]


@pytest.mark.parametrize("no_color", [False, True])
async def test_the_live_view_has_a_bar_for_each_wave_of_sent_and_confirmed(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch, *, no_color: bool
) -> None:
    half = counts(pending=5, rebuilding=5, succeeded=10)
    broken = counts(pending=4, failed=1, rebuilding=5, succeeded=10)
    api.jobs = [{"server_id": "s-1", "name": "web-\x1b[31m1", "state": "failed", "reason": {"code": "no_host"}}]
    api.play(*[plan_document("running", counts=half)] * 2, *[plan_document("running", counts=broken)] * 3, "succeeded")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    async with Terminal(("wait", PLAN_ID)) as terminal:
        await terminal.sees("█" * 15 + "▒" * 7 + "·" * 8)
        await terminal.sees("10/20")
        await terminal.sees("web-?[31m1 failed: no_host")
        assert await terminal.ends() == 0
    assert (b"\x1b[36m" in terminal.shown) is not no_color, "colour"
