"""The cloud's certificate goes bad while plans run, and is good again after a while."""

import asyncio
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from sqlalchemy import text

from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread
from tests.driver.authority import Authority
from tests.driver.front import Front, fronts
from tests.driver.site import QUEUES, Site, Workers
from tests.parts import eventually

pytestmark = pytest.mark.timeout(150)


@dataclass
class Secured:
    """A cloud that is reached over TLS alone. Every call has a connection, and so a handshake, of its own."""

    cloud: Running
    front: Front
    trusted: Authority
    other: Authority

    def good(self) -> None:
        """As at first."""

        def change(context: ssl.SSLContext) -> None:
            context.sni_callback = None
            context.load_cert_chain(self.trusted.certify())

        self.front.change_tls(change)

    def untrusted(self) -> None:
        """Its certificate is another authority's."""
        self.front.change_tls(lambda context: context.load_cert_chain(self.other.certify()))

    def expired(self) -> None:
        """Nobody renewed its certificate."""
        self.front.change_tls(lambda context: context.load_cert_chain(self.trusted.certify(expired=True)))

    def broken(self) -> None:
        """It ends every handshake with an alert."""

        def refuse(*_: object) -> int:
            return int(ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR)

        def change(context: ssl.SSLContext) -> None:
            context.sni_callback = refuse

        self.front.change_tls(change)


Trouble = Callable[[Secured], None]
TROUBLES = {
    "untrusted": (Secured.untrusted, "certificate is not trusted", range(10, 60)),
    "expired": (Secured.expired, "expired", range(70, 120)),
    "handshake fails": (Secured.broken, "TLS", range(130, 180)),
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("authorities")
    trusted, other = Authority.made(folder / "trusted"), Authority.made(folder / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted.certify())
    with fronts() as opened:
        front = opened.open(tls=context)
        with serve_in_thread(RehearsalConfig(servers=300, rebuild_seconds=0.6), port=0, url=front.url) as running:
            front.backend = running.listens_at
            yield Secured(running, front, trusted, other)


@pytest.fixture(scope="module")
def cloud(secured: Secured) -> Running:
    return secured.cloud


@pytest.fixture(scope="module")
def workers(secured: Secured, urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """One Celery worker a queue; clouds.yaml names the authority."""
    folder: Path = tmp_path_factory.mktemp("workers")
    env = Site.environment(secured.cloud, folder, *urls)
    document = yaml.safe_load((folder / "clouds.yaml").read_text())
    for entry in document["clouds"].values():
        entry["cacert"] = str(secured.trusted.ca)
    (folder / "clouds.yaml").write_text(yaml.safe_dump(document))
    running = Workers(env, folder)
    running.start(*QUEUES)
    yield running
    running.stop()
    for log in sorted(folder.glob("*.log")):
        print(f"== {log.name}\n{log.read_text()[-2000:]}")  # noqa: T201  pytest shows it beside a failure


async def trouble(site: Site) -> str:
    """What the project's plans say of the cloud; empty while it is well."""
    async with site.engine.connect() as conn:
        return str((await conn.execute(text("SELECT trouble_message FROM projects"))).scalar_one_or_none() or "")


async def classified(site: Site, plan: UUID) -> set[str]:
    """What the answers to the plan's calls were taken for."""
    async with site.engine.connect() as conn:
        rows = await conn.execute(text("SELECT classification FROM attempts WHERE plan_id = :id"), {"id": plan})
        return {str(c) for c in rows.scalars()}


@pytest.mark.parametrize("kind", TROUBLES)
async def test_a_certificate_that_goes_bad_stops_sending_and_nothing_else(
    site: Site, secured: Secured, kind: str
) -> None:
    """Not a byte of a call leaves before its handshake is done, so none is in doubt."""
    begin, says, numbers = TROUBLES[kind]
    ids = site.named(*numbers)
    rollout = {"rate": "10/s", "max_in_flight": 200, "waves": [{"size": "100%"}]}
    plan = await site.submit({"targets": {"servers": ids}, "rollout": rollout, "failure": {"attempts": 1}})
    await eventually(lambda: sum(site.accepted(i) for i in ids) >= 10, deadline=60, message="ten calls were accepted")
    await asyncio.to_thread(begin, secured)
    try:
        said = await eventually(lambda: trouble(site), deadline=60, message="the plan says why nothing is sent")
        assert says in said, said
        await asyncio.to_thread(secured.broken)

        async def another() -> bool:
            return "handshake" in await trouble(site)

        await eventually(another, deadline=60, message="the plan says what is the matter by now")
        assert (await site.status(plan))[0] == "running"
        assert sum(site.accepted(i) for i in ids) < len(ids)
    finally:
        await asyncio.to_thread(secured.good)
    assert await site.ended(plan, within=90) == "succeeded", await site.jobs(plan)
    assert [site.received(i) for i in ids] == [1] * len(ids)
    assert [site.accepted(i) for i in ids] == [1] * len(ids)
    assert await classified(site, plan) <= {"applied/accepted", "not_applied/never_sent"}
    assert await trouble(site) == ""
    await site.assert_ledger_is_sound(plan)


async def test_a_plan_that_comes_meanwhile_says_why_it_waits_and_is_done_later(site: Site, secured: Secured) -> None:
    """Nothing drives, so the sign-in and the first looks fail too."""
    ids = site.named(*range(190, 195))
    await site.undriven()
    site.cloud.revoke_tokens()
    await asyncio.to_thread(secured.expired)
    try:
        plan = await site.submit({"targets": {"servers": ids}})

        async def why() -> str:
            async with site.engine.connect() as conn:
                row = await conn.execute(text("SELECT reason_message FROM plans WHERE id = :id"), {"id": plan})
                return str(row.scalar_one() or "")

        said = await eventually(why, deadline=60, message="the plan says why it isn't prepared")
        assert "certificate" in said, said
    finally:
        await asyncio.to_thread(secured.good)
    assert await site.ended(plan, within=90) == "succeeded"
    assert [site.received(i) for i in ids] == [1] * 5
