"""A drive process crashes around its calls of hooks: nothing is lost, and no server is rebuilt twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.rehearsal import Running
from tests.driver.hook_receiver import KEY, receiving
from tests.driver.site import QUEUES, Site, Workers
from tests.parts import eventually

POINTS = ("hooks.begun", "hooks.before_commit", "hooks.after_commit")


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the process that crashes at a point leaves its name."""
    return tmp_path_factory.mktemp("struck")


@pytest.fixture(scope="module")
def workers(
    cloud: Running, urls: tuple[str, str], struck: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """Workers that crash at each point, once over all processes."""
    folder: Path = tmp_path_factory.mktemp("workers")
    armed = ";".join(f"{point}=crash~{struck / point}" for point in POINTS)
    env = {**Site.environment(cloud, folder, *urls), "HOOK_KEY": KEY, "REBUILD_FAILPOINTS": armed}
    running = Workers(env, folder)
    running.start(*QUEUES)
    yield running
    running.stop()
    for log in sorted(folder.glob("*.log")):
        print(f"== {log.name}\n{log.read_text()[-4000:]}")  # noqa: T201  pytest shows it beside a failure


async def test_a_crash_around_a_hook_repeats_a_call_and_no_rebuild(site: Site, struck: Path) -> None:
    ids = site.named(*range(50, 60))

    async def look(_: str, server: str) -> tuple[int, str]:
        async with site.engine.connect() as conn:
            state = (
                await conn.execute(text("SELECT state FROM jobs WHERE server_id = :id"), {"id": server})
            ).scalar_one()
        return site.received(server), state

    async with receiving() as receiver:
        receiver.look = look
        plan = await site.submit({"targets": {"servers": ids}, "hooks": receiver.hooks("before", "after", "release")})
        for n in range(1, len(POINTS) + 1):

            def crashed(n: int = n) -> bool:
                return sum((struck / point).exists() for point in POINTS) >= n

            await eventually(crashed, deadline=60, message=f"{n} crashes", every=0.05)
        assert await site.ended(plan) == "succeeded"
        await eventually(lambda: {c.server for c in receiver.of("release")} == set(ids), deadline=60)
        await site.undriven()
        assert {point for point in POINTS if (struck / point).exists()} == set(POINTS)
        assert [site.accepted(i) for i in ids] == [1] * len(ids)
        assert [site.received(i) for i in ids] == [1] * len(ids)
        expected = {"before": (0, "draining"), "after": (1, "configuring"), "release": (1, "succeeded")}
        assert {(c.phase, c.seen) for c in receiver.calls} == set(expected.items())
        for phase in expected:
            assert len({c.message_id for c in receiver.of(phase)}) == len(ids)
        await site.assert_ledger_is_sound(plan)
