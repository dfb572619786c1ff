"""A small API that plays plans from a script: what rebuildctl makes of them is what these tests are about."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from orchestrator.domain.states import JobState

TOKEN = "rbt_test"
PLAN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER_ID = "01890a5d-ac96-774b-bcce-b302099a8058"


def counts(**given: int) -> dict[str, int]:
    return {"total": sum(given.values()), **{str(state): given.get(state, 0) for state in JobState}}


def plan_document(status: str = "running", plan_id: str = PLAN_ID, **given: Any) -> dict[str, Any]:
    """A plan as the API gives it, with a field that this version of the client doesn't know."""
    jobs = given.pop("counts", counts(pending=1, rebuilding=1, succeeded=2))
    return {
        "id": plan_id, "name": "web tier", "cloud": "prod", "status": status, "reason": None, "digest": "d1",
        "url": f"http://service.example/plans/{plan_id}", "labels": {}, "created_by": "ci",
        "created_at": "2026-11-24T10:00:00Z", "started_at": "2026-11-24T10:00:01Z", "finished_at": None,
        "counts": jobs,
        "waves": [{"index": 0, "name": "canary", "size": 4, "status": "running", "counts": jobs, "bake_until": None}],
        "rate": {"allowed_per_second": 10.0, "used_per_second": 9.8}, "eta": None, "max_in_flight": 10,
        "errors": [], "from_the_future": {"kept": True}, **given,
    }  # fmt: skip


def unresolved_job(server_id: str, attempts: int = 1, **given: Any) -> dict[str, Any]:
    """A server of whose newest call nobody knows what it did, with its evidence."""
    log = [
        {"number": n, "fence": 1, "sent_at": "2026-11-24T10:00:05Z", "request_id": f"req-{n}", "http_status": 502,
         "classification": "unknown/server_error", "body_sha256": "b",
         "baseline": {"status": "ACTIVE", "image": "old-image", "launched_at": "2026-01-01T00:00:00", "marker": None},
         "evidence": [
             {"kind": "server", "value": {"status": "ACTIVE", "image": "old-image"}, "at": "2026-11-24T10:10:05Z"},
             {"kind": "actions", "value": [], "at": "2026-11-24T10:10:05Z"},
             {"kind": "finding", "value": "nothing: Nothing shows that the call took effect.",
              "at": "2026-11-24T10:10:05Z"},
         ]}
        for n in range(1, attempts + 1)
    ]  # fmt: skip
    reason = {"code": "unknown_answer", "message": "Whether the call took effect is not known."}
    return {
        "server_id": server_id, "name": f"web-{server_id}", "state": "unresolved", "attempts": attempts,
        "reason": reason, "attempt_log": log, "events": [], **given,
    }  # fmt: skip


@dataclass
class FakeApi:
    """Each plan is a list of documents: a GET shows the next one, the last one for ever."""

    plans: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    refusals: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Problem documents for the actions on single servers."""
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    """Method, path with query, headers, body."""
    failures: list[Any] = field(default_factory=list)
    """Answers for the next requests: a status, `drop` (the connection is cut) or a problem document."""
    drop_after: int | None = None
    """A stream is cut after so many events."""
    copy: str = ""
    """The plan that a clone or a rollback makes."""
    url: str = ""

    def play(self, *statuses: str | dict[str, Any], plan_id: str = PLAN_ID) -> None:
        """The plan's states, one for each look."""
        self.plans[plan_id] = [plan_document(s, plan_id) if isinstance(s, str) else s for s in statuses]

    def sent(self, method: str, path: str) -> list[tuple[str, str, dict[str, str], Any]]:
        return [r for r in self.requests if r[0] == method and r[1].partition("?")[0] == path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        self.requests.append((request.method, request.path_qs, dict(request.headers), body))
        if self.failures:
            failure = self.failures.pop(0)
            if failure == "drop":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if isinstance(failure, dict):
                return web.json_response(failure, status=failure["status"], content_type="application/problem+json")
            return web.Response(status=failure, text="<html>not a problem document</html>")
        if request.path not in ("/healthz", "/readyz") and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(401, "unauthenticated", "A bearer token is needed.")
        return await self.route(request, request.path.strip("/").split("/"))

    async def route(self, request: web.Request, path: Sequence[str]) -> web.StreamResponse:
        match [request.method, *path]:
            case ["POST", "v1", "plans"]:
                return web.json_response(self.look(PLAN_ID), status=201)
            case ["GET", "v1", "plans"]:
                return web.json_response({"items": [p[0] for p in self.plans.values()], "next": None})
            case ["GET", "v1", "plans", plan_id] if plan_id in self.plans:
                return web.json_response(self.look(plan_id))
            case ["GET", "v1", "plans", plan_id, "jobs"] if plan_id in self.plans:
                state, start = request.query.get("state"), int(request.query.get("cursor", 0))
                found = [j for j in self.jobs if state in (None, j["state"])]
                end = start + min(int(request.query.get("limit", 100)), 2)
                return web.json_response({"items": found[start:end], "next": str(end) if end < len(found) else None})
            case ["GET", "v1", "plans", plan_id, "jobs", server_id] if plan_id in self.plans:
                return self.job(server_id)
            case ["POST", "v1", "plans", plan_id, "jobs", server_id, "resolve"] if plan_id in self.plans:
                return self.resolve(server_id, json.loads(await request.read()))
            case ["POST", "v1", "plans", plan_id, "jobs", server_id, "skip" | "acknowledge"] if plan_id in self.plans:
                return self.job(server_id)
            case ["PATCH", "v1", "plans", plan_id] if plan_id in self.plans:
                return web.json_response(self.look(plan_id))
            case ["POST", "v1", "clouds", name, "pause" | "resume"]:
                return web.json_response({"name": name})
            case ["GET", "v1", "plans", plan_id, "events"] if plan_id in self.plans:
                if "text/event-stream" in request.headers["Accept"]:
                    return await self.stream(request)
                return web.json_response({"items": self.events, "next": None})
            case [
                "POST",
                "v1",
                "plans",
                plan_id,
                "start" | "pause" | "resume" | "cancel" | "retry" | "approve" | "reject" | "promote",
            ] if plan_id in self.plans:
                return web.json_response(self.look(plan_id))
            case ["POST", "v1", "plans", plan_id, "clone" | "rollback"] if plan_id in self.plans and self.copy:
                return web.json_response(self.look(self.copy))
            case ["POST", "v1", "plans", _, _]:
                return problem(422, "not_supported_yet", "This comes with a later version.")
            case ["GET", "v1", "clouds"]:
                return web.json_response(
                    {"items": [{"name": "prod", "configured": True, "healthy": True}], "next": None}
                )
            case ["GET", "healthz" | "readyz"]:
                return web.json_response({"status": "ok"})
            case _:
                return problem(404, "not_found", "There is no plan of that id.")

    def job(self, server_id: str) -> web.Response:
        found = next((j for j in self.jobs if j["server_id"] == server_id), None)
        return web.json_response(found) if found else problem(404, "not_found", "The plan has no server of that id.")

    def resolve(self, server_id: str, body: dict[str, Any]) -> web.Response:
        if refusal := self.refusals.get(server_id):
            return web.json_response(refusal, status=refusal["status"], content_type="application/problem+json")
        job = next(j for j in self.jobs if j["server_id"] == server_id)
        if body["attempt"] != job["attempts"]:
            return problem(409, "attempt_mismatch", f"Its newest attempt is number {job['attempts']}.")
        job["state"] = {"applied": "rebuilding", "not_applied": "pending", "give_up": "failed"}[body["decision"]]
        return web.json_response(job)

    def look(self, plan_id: str) -> dict[str, Any]:
        script = self.plans[plan_id]
        return script.pop(0) if len(script) > 1 else script[0]

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 2000\n\n: still here\n\n")
        after, sent = int(request.headers.get("Last-Event-ID", 0)), 0
        for event in self.events:
            if event["seq"] <= after:
                continue
            if self.drop_after is not None and sent == self.drop_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(f"id: {event['seq']}\ndata: {json.dumps(event)}\n\n".encode())
            sent += 1
        await response.write(b"event: end\ndata: {}\n\n")
        return response


def problem(status: int, code: str, detail: str, *errors: Mapping[str, str]) -> web.Response:
    return web.json_response(
        problem_document(status, code, detail, *errors), status=status, content_type="application/problem+json"
    )


def problem_document(status: int, code: str, detail: str, *errors: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": f"/problems/{code}", "title": code, "status": status, "detail": detail, "code": code,
        "errors": list(errors),
    }  # fmt: skip


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    """Serves in a thread, since rebuildctl runs its own loop in the test's."""
    api, loop, started = FakeApi(), asyncio.new_event_loop(), Future[int]()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{rest:.*}", api.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        started.set_result(int(runner.addresses[0][1]))
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{started.result(timeout=10)}"
    try:
        yield api
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
        loop.close()
