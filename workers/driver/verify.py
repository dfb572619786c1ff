"""Verifying: the plan's probes of a rebuilt server, from this worker; the next driver begins them anew.

The probes of all servers share a bounded number of sockets and one loop with everything else: a probe is a task that
sleeps until its next try is due. A server's address is read from the mirror's newest view each time, so that one that
comes late, or moves, is found without a read of its own.
"""

import asyncio
import time
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import aiohttp
from yarl import URL

from orchestrator.domain import addresses
from orchestrator.domain.decide import Happened, Reason
from orchestrator.domain.lifecycle import JobEvent
from orchestrator.domain.probing import Course, Standing, choose_address, kind_of, label_of, wanted_address
from orchestrator.domain.spec.extras import HttpProbe, TcpProbe
from orchestrator.domain.states import JobState
from orchestrator.ledger.drive import ClaimedJob
from orchestrator.ledger.transitions import AttemptAnswer
from orchestrator.log import get_logger
from workers.driver.desk import Desk, ProbeRun, Verifying
from workers.driver.hooks import next_after_verified
from workers.driver.mirror import View

log = get_logger(__name__)

SOCKETS = 256
"""Probes that may be connected at once."""
TRY_SECONDS = 5.0
"""How long one try may take, whatever its probe's timeout."""
LOOK_SECONDS = 2.0
"""How often it is looked for a deletion of the server."""
VIEW_SECONDS = 0.2
"""How often it is looked whether the mirror has been read."""


async def begin_verifying(
    desk: Desk, job: ClaimedJob, state: JobState, *, data: Mapping[str, Any] | None = None
) -> None:  # fmt: skip
    """A job in `state` was rebuilt, which is recorded, or another driver left it `verifying`: its probes begin, or it
    goes on at once where its plan has none."""
    plan = desk.plans.get(job.plan_id)
    probes = tuple(kind_of(p) for p in plan.spec.verify) if plan else ()
    now = time.monotonic()
    verifying = Verifying(job=job, runs=[ProbeRun(probe=p, course=Course.begin(p, now)) for p in probes])
    if probes:
        desk.verifying[job.server_id] = verifying  # before anything is awaited: the mirror goes on keeping addresses
    if state is not JobState.VERIFYING:
        await desk.happen(job, state, Happened(event=JobEvent.REBUILT), data=data)
    if not probes:
        await next_after_verified(desk, job)
        return
    verifying.waits = True
    desk.probes_wanted.set()


async def verify_forever(desk: Desk) -> None:
    """Runs the probes of all servers that are `verifying`, until cancelled."""
    sockets = asyncio.Semaphore(SOCKETS)
    async with _session() as http, asyncio.TaskGroup() as tasks:
        while True:
            desk.probes_wanted.clear()
            for verifying in list(desk.verifying.values()):
                if verifying.waits:
                    verifying.waits = False
                    tasks.create_task(_verify(desk, verifying, http, sockets))
            await desk.probes_wanted.wait()


async def _verify(
    desk: Desk, verifying: Verifying, http: aiohttp.ClientSession, sockets: asyncio.Semaphore
) -> None:  # fmt: skip
    """Runs one server's probes: all must succeed; the first that can't any more ends it, and so does a deletion."""
    runs = [asyncio.create_task(_probe(desk, verifying, run, http, sockets)) for run in verifying.runs]
    gone = asyncio.create_task(_until_gone(desk, verifying))
    try:
        waiting: set[asyncio.Task[None]] = set(runs)
        while waiting and not gone.done() and not any(r.failed for r in verifying.runs):
            done, pending = await asyncio.wait({*waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            waiting = pending - {gone}
            for task in done:
                task.result()  # what must not happen shows
    finally:
        for task in (*runs, gone):
            task.cancel()
    if desk.verifying.get(verifying.job.server_id) is not verifying:
        return  # somebody else's word was first
    del desk.verifying[verifying.job.server_id]
    await _record(desk, verifying, gone=gone.done() and not gone.cancelled())


async def _record(desk: Desk, verifying: Verifying, *, gone: bool) -> None:
    job = verifying.job
    told = [_told(run) for run in verifying.runs]
    evidence = [{"kind": "probe", "value": f"{t['probe']} at {t['address'] or 'no address'}: {t['outcome']}"}
                for t in told]  # fmt: skip
    answer = AttemptAnswer(number=job.attempt, evidence=evidence)
    data = {"probes": told}
    failed = next((run for run in verifying.runs if run.failed), None)
    if gone:
        reason = Reason(code="server_deleted", message="The server was deleted while it was verified.")
        event = Happened(event=JobEvent.GONE, reason=reason, fingerprint="server_deleted")
    elif failed is not None:
        event = Happened(event=JobEvent.CHECK_FAILED, reason=failed.reason, fingerprint=failed.fingerprint)
    else:
        await next_after_verified(desk, job, answer=answer, data=data)
        return
    await desk.happen(job, JobState.VERIFYING, event, answer=answer, data=data)


def _told(run: ProbeRun) -> Mapping[str, Any]:
    return {
        "probe": label_of(run.probe), "address": str(run.address) if run.address else None,
        "standing": run.course.standing.value if run.refused is None else Standing.FAILED.value,
        "tries": run.course.tries, "outcome": run.refused or run.course.says,
    }  # fmt: skip


async def _until_gone(desk: Desk, verifying: Verifying) -> None:
    """Returns once the mirror shows the server deleted, or somebody else's word on the job was first."""
    server_id = verifying.job.server_id
    while desk.verifying.get(server_id) is verifying:
        view = desk.mirror.view(server_id)
        if view is not None and view.server is not None and view.server.status in ("DELETED", "SOFT_DELETED"):
            return
        if view is not None and view.server is None and desk.mirror.surely_gone(server_id):
            return
        await asyncio.sleep(LOOK_SECONDS)


async def _probe(
    desk: Desk, verifying: Verifying, run: ProbeRun, http: aiohttp.ClientSession, sockets: asyncio.Semaphore
) -> None:  # fmt: skip
    """Tries until the probe has passed or failed. Its time runs from when the server is seen."""
    await _seen(desk, verifying)
    run.course = Course.begin(run.probe, time.monotonic())
    while run.course.standing is Standing.OPEN:
        await asyncio.sleep(max(0.0, run.course.next_at - time.monotonic()))
        run.address = _address(await _seen(desk, verifying), run)
        if run.address is None:
            began = time.monotonic()
            error: str | None = f"the server has no {wanted_address(run.probe)}"
        elif refused := addresses.refusal(run.address, loopback=desk.loopback):
            run.refused = refused
            return
        else:
            async with sockets:
                began = time.monotonic()
                error = await try_once(run.probe, run.address, http)
        run.course = run.course.tried(error, began=began, now=time.monotonic())


def _address(view: View, run: ProbeRun) -> IPv4Address | IPv6Address | None:
    """Where the next try goes, by a view of the server; one whose cell doesn't answer keeps the address that it had."""
    if view.server is None or view.server.status == "UNKNOWN":
        return run.address
    chosen = choose_address(view.server.addresses, run.probe)
    return chosen.ip if chosen else None


async def _seen(desk: Desk, verifying: Verifying) -> View:
    """The newest view of the server; a new driver's mirror has to be read first, however long the cloud is away."""
    while True:
        view = desk.mirror.view(verifying.job.server_id)
        if view is not None:
            return view
        await asyncio.sleep(VIEW_SECONDS)


async def try_once(probe: TcpProbe, ip: IPv4Address | IPv6Address, http: aiohttp.ClientSession) -> str | None:
    """One try; None: it succeeded, else how it failed, in few words."""
    try:
        async with asyncio.timeout(TRY_SECONDS):
            if isinstance(probe, HttpProbe):
                return await _get(probe, ip, http)
            _, writer = await asyncio.open_connection(str(ip), probe.port)
            writer.transport.abort()
            return None
    except TimeoutError:
        return f"no answer within {TRY_SECONDS:g} s"
    except aiohttp.ClientConnectorError as e:
        return _words(e.os_error)
    except aiohttp.ServerDisconnectedError:
        return "the connection was closed without an answer"
    except aiohttp.ClientError as e:
        return f"no valid HTTP answer ({type(e).__name__})"
    except OSError as e:
        return _words(e)


async def _get(probe: HttpProbe, ip: IPv4Address | IPv6Address, http: aiohttp.ClientSession) -> str | None:
    host = f"[{ip}]" if ip.version == 6 else str(ip)
    url = URL(f"http://{host}:{probe.port}{probe.path}", encoded=True)
    async with http.get(url, allow_redirects=False) as response:
        response.close()  # the status is all that counts: the body stays unread, however long it is
        return None if response.status == probe.status else f"HTTP {response.status} instead of {probe.status}"


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionResetError):
        return "connection reset"
    return (error.strerror or type(error).__name__).lower()


def _session() -> aiohttp.ClientSession:
    """No cookies, no proxies, no names: a connection of its own for each try, to an address."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "fleet-rebuild", "Accept-Encoding": "identity"},
        auto_decompress=False,
        trust_env=False,
    )
