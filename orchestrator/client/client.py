"""The REST API as a typed, asynchronous Python client."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import aiohttp

from orchestrator.client.errors import ApiProblem, ApiUnreachable
from orchestrator.client.models import Cloud, Event, Job, JobDetail, Page, Plan, Token, page_of
from orchestrator.client.sse import parse_sse
from orchestrator.client.transport import PASSING_STATUSES, Transport, problem

SILENCE_SECONDS = 45.0
"""A stream that says nothing for so long, not even a heartbeat, is opened anew."""

Decision = Literal["applied", "not_applied", "give_up"]
"""What a person says of a call whose effect is unknown."""


class RebuildClient:
    """`async with RebuildClient(api_url, token) as client`; it belongs to one event loop.

    Every method raises `ApiProblem` when the API refuses and `ApiUnreachable` when it doesn't answer. Requests that
    do no harm twice are tried again for `patience` seconds; `timeout` bounds one try, in seconds.
    """

    def __init__(self, api_url: str, token: str, *, patience: float = 10.0, timeout: float = 60.0):
        self._transport = Transport(api_url, token, patience=patience, timeout=timeout)

    async def __aenter__(self) -> Self:
        self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    @property
    def api_url(self) -> str:
        return str(self._transport.base)

    async def submit(self, spec: Mapping[str, Any] | bytes, *, idempotency_key: str | None = None) -> Plan:
        """Submits a plan file's content (or its JSON, encoded); with a key a repeated submit returns the same plan,
        and only then is it tried again when the answer is lost."""
        plan, _ = await self.submit_once(spec, idempotency_key=idempotency_key)
        return plan

    async def submit_once(
        self, spec: Mapping[str, Any] | bytes, *, idempotency_key: str | None = None
    ) -> tuple[Plan, bool]:
        """As `submit`; the second part says whether the plan is new (False: an earlier submit had this key)."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        body = spec if isinstance(spec, bytes) else dict(spec)
        status, document = await self._transport.request(
            "POST", "/v1/plans", body=body, headers=headers, repeatable=bool(idempotency_key)
        )
        return Plan.of(document), status != 200

    async def get_plan(self, plan_id: str) -> Plan:
        return Plan.of(await self._get(_plan(plan_id)))

    async def list_plans(
        self,
        *,
        status: str | None = None,
        label: str | None = None,
        cloud: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Plan]:
        """One page, newest first; `label` is `key=value`."""
        params = {"status": status, "label": label, "cloud": cloud, "limit": limit, "cursor": cursor}
        return page_of(Plan, await self._get("/v1/plans", params))

    async def spec(self, plan_id: str) -> dict[str, Any]:
        """The plan file as it was submitted, secrets as size and digest."""
        return dict(await self._get(_plan(plan_id, "spec")))

    async def act(
        self,
        plan_id: str,
        action: str,
        *,
        reason: str | None = None,
        digest: str | None = None,
        servers: Sequence[str] | None = None,
    ) -> Plan:
        """start, pause, resume, cancel, approve, reject, promote or retry; see `rollback` and `clone`."""
        given = {"reason": reason, "digest": digest, "servers": None if servers is None else list(servers)}
        body = {key: value for key, value in given.items() if value is not None}
        _, document = await self._transport.request("POST", _plan(plan_id, action), body=body)
        return Plan.of(document)

    async def start(self, plan_id: str, *, digest: str | None = None, reason: str | None = None) -> Plan:
        """Starts a held plan; with `digest` only if it is still the one that was previewed."""
        return await self.act(plan_id, "start", digest=digest, reason=reason)

    async def pause(self, plan_id: str, *, reason: str | None = None) -> Plan:
        return await self.act(plan_id, "pause", reason=reason)

    async def resume(self, plan_id: str, *, reason: str | None = None) -> Plan:
        return await self.act(plan_id, "resume", reason=reason)

    async def cancel(self, plan_id: str, *, reason: str | None = None) -> Plan:
        return await self.act(plan_id, "cancel", reason=reason)

    async def approve(self, plan_id: str, *, reason: str | None = None) -> Plan:
        """Lets a plan pass the gate that it waits at; never one's own."""
        return await self.act(plan_id, "approve", reason=reason)

    async def reject(self, plan_id: str, *, reason: str | None = None) -> Plan:
        return await self.act(plan_id, "reject", reason=reason)

    async def promote(self, plan_id: str, *, reason: str | None = None) -> Plan:
        """Ends the bake of the current wave now."""
        return await self.act(plan_id, "promote", reason=reason)

    async def retry(self, plan_id: str, *, servers: Sequence[str] | None = None, reason: str | None = None) -> Plan:
        """Asks for another attempt for the plan's failed servers, or for these alone: each is wiped once more."""
        return await self.act(plan_id, "retry", servers=servers, reason=reason)

    async def rollback(
        self,
        plan_id: str,
        *,
        servers: Sequence[str] | None = None,
        hold: bool = False,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Plan:
        """A new plan that takes the servers which the plan changed, or these of them, back to the images that they
        had; with `hold` only a preview of it. What was on their disks is gone."""
        body: dict[str, Any] = {"hold": True} if hold else {}
        if servers is not None:
            body["servers"] = list(servers)
        return await self._copy(plan_id, "rollback", body, reason, idempotency_key)

    async def clone(self, plan_id: str, *, reason: str | None = None, idempotency_key: str | None = None) -> Plan:
        """A new plan of the same content, held: it shows what that would do now."""
        return await self._copy(plan_id, "clone", {}, reason, idempotency_key)

    async def _copy(
        self, plan_id: str, action: str, body: dict[str, Any], reason: str | None, key: str | None
    ) -> Plan:  # fmt: skip
        if reason is not None:
            body["reason"] = reason
        headers = {"Idempotency-Key": key or new_idempotency_key()}
        path = _plan(plan_id, action)
        _, document = await self._transport.request("POST", path, body=body, headers=headers, repeatable=True)
        return Plan.of(document)

    async def change(
        self,
        plan_id: str,
        *,
        max_in_flight: int | None = None,
        rate: str | None = None,
        reason: str | None = None,
    ) -> Plan:
        """Changes a running plan's pace; `rate` as in the plan file, such as `10/s`."""
        given = {"max_in_flight": max_in_flight, "rate": rate, "reason": reason}
        body = {key: value for key, value in given.items() if value is not None}
        _, document = await self._transport.request("PATCH", _plan(plan_id), body=body)
        return Plan.of(document)

    async def jobs(
        self,
        plan_id: str,
        *,
        state: str | None = None,
        wave: int | None = None,
        cause: str | None = None,
        q: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page[Job]:
        """One page of a plan's jobs; `q` is a part of a server's name or its id."""
        params = {"state": state, "wave": wave, "cause": cause, "q": q, "limit": limit, "cursor": cursor}
        return page_of(Job, await self._get(_plan(plan_id, "jobs"), params))

    async def all_jobs(self, plan_id: str, *, page_size: int = 1000, **filters: Any) -> AsyncIterator[Job]:
        """Every job that `jobs` with these filters would list."""
        cursor: str | None = None
        while True:
            page = await self.jobs(plan_id, limit=page_size, cursor=cursor, **filters)
            for job in page.items:
                yield job
            if page.next is None:
                return
            cursor = page.next

    async def job(self, plan_id: str, server_id: str) -> JobDetail:
        """One job with its attempts, their evidence and its events."""
        return JobDetail.of(await self._get(_plan(plan_id, "jobs", server_id)))

    async def act_on_job(self, plan_id: str, server_id: str, action: str, body: Mapping[str, Any]) -> JobDetail:
        """resolve, skip or acknowledge."""
        _, document = await self._transport.request("POST", _plan(plan_id, "jobs", server_id, action), body=dict(body))
        return JobDetail.of(document)

    async def resolve(
        self, plan_id: str, server_id: str, *, decision: Decision, attempt: int, reason: str | None = None
    ) -> JobDetail:
        """Settles a server whose call's effect is unknown. `attempt` is the one that was looked at: a newer one is a
        409. So is `not_applied` where the cloud shows that the call took effect; the problem's `errors` say how."""
        body: dict[str, Any] = {"decision": decision, "attempt": attempt}
        if reason is not None:
            body["reason"] = reason
        return await self.act_on_job(plan_id, server_id, "resolve", body)

    async def events(self, plan_id: str, *, limit: int | None = None, cursor: str | None = None) -> Page[Event]:
        """One page of a plan's history, oldest first."""
        return page_of(Event, await self._get(_plan(plan_id, "events"), {"limit": limit, "cursor": cursor}))

    async def follow(self, plan_id: str, *, after: int = 0, patience: float = 60.0) -> AsyncIterator[Event]:
        """A plan's events after that `seq`, each once and in order, as they happen.

        Connects again where it was cut off; ends when the plan has ended and the service has told all.
        Raises `ApiUnreachable` after `patience` seconds without contact.
        """
        seen, lost_at, pause = after, time.monotonic(), 0.2
        while True:
            before, complete = seen, False
            try:
                async with self._transport.stream(
                    _plan(plan_id, "events"),
                    headers={"Accept": "text/event-stream", "Last-Event-ID": str(seen)},
                    silence=SILENCE_SECONDS,
                ) as answer:
                    if answer.status >= 300 and answer.status not in PASSING_STATUSES:
                        raise problem(answer.status, answer.headers, await answer.read())
                    if answer.status < 300:
                        lost_at, pause = time.monotonic(), 0.2
                        async for message in parse_sse(answer.content):
                            lost_at = time.monotonic()
                            if message.type == "end":
                                return
                            event = _event(message.data)
                            if event is not None and event.seq > seen:
                                seen = event.seq
                                yield event
                        complete = True
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            if complete and seen == before and (await self.get_plan(plan_id)).is_final:
                return
            if time.monotonic() - lost_at > patience:
                raise ApiUnreachable(f"the API at {self.api_url} can't be reached")
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    async def clouds(self) -> Page[Cloud]:
        return page_of(Cloud, await self._get("/v1/clouds"))

    async def act_on_cloud(self, name: str, action: str, *, reason: str | None = None) -> Any:
        """pause or resume: the emergency stop of a cloud's project."""
        body = {} if reason is None else {"reason": reason}
        _, document = await self._transport.request("POST", f"/v1/clouds/{quote(name, safe='')}/{action}", body=body)
        return document

    async def create_token(
        self,
        name: str,
        *,
        role: str,
        clouds: Sequence[str] = (),
        max_targets: int | None = None,
        expires_at: datetime | None = None,
    ) -> Token:
        """Makes a token; its secret stands only in this answer."""
        body: dict[str, Any] = {"name": name, "role": role}
        if clouds:
            body["clouds"] = list(clouds)
        if max_targets is not None:
            body["max_targets"] = max_targets
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        _, document = await self._transport.request("POST", "/v1/tokens", body=body)
        return Token.of(document)

    async def tokens(self) -> Page[Token]:
        return page_of(Token, await self._get("/v1/tokens"))

    async def revoke_token(self, token_id: str) -> Any:
        _, document = await self._transport.request("DELETE", f"/v1/tokens/{quote(token_id, safe='')}")
        return document

    async def is_ready(self) -> bool:
        """Whether the service says that it can work; one try, without a token's rights."""
        return await self._answers("/readyz")

    async def is_alive(self) -> bool:
        """Whether the service answers at all; one try, without a token's rights."""
        return await self._answers("/healthz")

    async def _answers(self, path: str) -> bool:
        try:
            await self._transport.request("GET", path, repeatable=False)
        except (ApiUnreachable, ApiProblem):
            return False
        return True

    async def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        _, document = await self._transport.request("GET", path, params=params)
        return document


def new_idempotency_key() -> str:
    """A key for one submit, so that it may be tried again."""
    return str(uuid.uuid4())


def _plan(plan_id: str, *rest: str) -> str:
    return "/".join(["/v1/plans", *(quote(part, safe="") for part in (plan_id, *rest))])


def _event(data: str) -> Event | None:
    """None for a message that is no event of a plan."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return Event.of(document) if isinstance(document, dict) and "seq" in document else None
