"""Every route of the interface: where it leads, what it reads and what it answers. OpenAPI is made from this table."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from pydantic import BaseModel

from orchestrator.api.handlers import controls, gates, plans, service
from orchestrator.api.requests import (
    ActionBody,
    ChangeBody,
    EventsQuery,
    HookBody,
    Input,
    JobsQuery,
    NoQuery,
    PlansQuery,
    ResolveBody,
    RetryBody,
    RollbackBody,
    StartBody,
    TokenBody,
)
from orchestrator.domain.spec import PlanSpec
from orchestrator.service.views import (
    AliveView,
    CloudView,
    EventView,
    HookAnswerView,
    JobDetailView,
    JobView,
    NewTokenView,
    Page,
    PlanView,
    ReadyView,
    TokenView,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
AGAIN = {"Idempotency-Key": "A repeated request under the same key returns the same plan."}


@dataclass(frozen=True, kw_only=True)
class Route:
    """One route. `answers`: status → the JSON's shape, or the media type of what isn't JSON."""

    method: str
    path: str
    name: str
    handler: Handler
    summary: str
    answers: Mapping[int, type[BaseModel] | str]
    query: type[Input] = NoQuery
    body: type[BaseModel] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Optional request headers: name → what for."""
    problems: tuple[int, ...] = ()
    """Problems besides those of every route."""
    public: bool = False
    """Needs no token."""


def _plan_action(
    name: str, handler: Handler, summary: str, body: type[ActionBody] = ActionBody, *, headers: Mapping[str, str] = {}
) -> Route:
    return Route(
        method="POST", path=f"/v1/plans/{{id}}/{name}", name=f"{name}_plan", handler=handler, summary=summary,
        body=body, answers={200: PlanView}, problems=(404, 409, 422), headers=headers,
    )  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route(
        method="POST", path="/v1/plans", name="submit_plan", handler=plans.submit_plan, summary="Submit a plan.",
        body=PlanSpec, answers={201: PlanView, 200: PlanView}, problems=(400, 409, 413, 415, 422),
        headers={"Idempotency-Key": "A repeated submit under the same key returns the same plan, with 200."},
    ),
    Route(
        method="GET", path="/v1/plans", name="list_plans", handler=plans.list_plans,
        summary="Plans, the newest first.", query=PlansQuery, answers={200: Page[PlanView]}, problems=(422,),
    ),
    Route(
        method="GET", path="/v1/plans/{id}", name="get_plan", handler=plans.get_plan, summary="One plan.",
        answers={200: PlanView}, problems=(404,),
    ),
    Route(
        method="GET", path="/v1/plans/{id}/spec", name="get_spec", handler=plans.get_spec,
        summary="The plan file, with defaults written out; user data as size and digest.",
        answers={200: "application/json"}, problems=(404,),
    ),
    Route(
        method="PATCH", path="/v1/plans/{id}", name="change_plan", handler=controls.change_plan,
        summary="Change a plan's pace while it isn't final.", body=ChangeBody, answers={200: PlanView},
        problems=(400, 404, 409, 415, 422),
    ),
    _plan_action("start", plans.start, "Run a saved preview.", StartBody),
    _plan_action("pause", plans.pause, "Stop sending; what is in flight goes on."),
    _plan_action("resume", plans.resume, "Go on after a pause or a halt, whose failures are acknowledged."),
    _plan_action("cancel", plans.cancel, "Stop new work and let what is in flight finish."),
    _plan_action(
        "retry", plans.retry, "Another attempt for failed servers, each wiped once more; or for some alone.", RetryBody
    ),
    _plan_action("approve", gates.approve, "Let a plan of somebody else's pass the gate that it waits at."),
    _plan_action("reject", gates.reject, "Stop a plan at the gate that it waits at."),
    _plan_action("promote", gates.promote, "End the bake of the current wave now."),
    _plan_action(
        "rollback", plans.rollback, "A new plan that takes the servers that this one changed, or some of them, back to "
        "the images that they had. What was on their disks is gone.", RollbackBody, headers=AGAIN,
    ),
    _plan_action("clone", plans.clone, "A new plan of the same content, held: what it would do now.", headers=AGAIN),
    Route(
        method="GET", path="/v1/plans/{id}/jobs", name="list_jobs", handler=plans.list_jobs,
        summary="A plan's jobs.", query=JobsQuery, answers={200: Page[JobView]}, problems=(404, 422),
    ),
    Route(
        method="GET", path="/v1/plans/{id}/jobs/{server_id}", name="get_job", handler=plans.get_job,
        summary="One job with its attempts, their evidence and its newest events.", answers={200: JobDetailView},
        problems=(404,),
    ),
    Route(
        method="POST", path="/v1/plans/{id}/jobs/{server_id}/resolve", name="resolve_job", handler=plans.resolve,
        summary="Settle an unresolved server, or give up a stuck one.", body=ResolveBody, answers={200: JobDetailView},
        problems=(400, 404, 409, 415, 422),
    ),
    Route(
        method="POST", path="/v1/plans/{id}/jobs/{server_id}/skip", name="skip_job", handler=controls.skip,
        summary="Leave a server out that was not sent.", body=ActionBody, answers={200: JobDetailView},
        problems=(400, 404, 409, 415, 422),
    ),
    Route(
        method="POST", path="/v1/plans/{id}/jobs/{server_id}/acknowledge", name="acknowledge_job",
        handler=controls.acknowledge, body=ActionBody, answers={200: JobDetailView},
        summary="Free the place that a failed, stuck or unresolved server keeps in disruption budgets.",
        problems=(400, 404, 409, 415, 422),
    ),
    Route(
        method="POST", path="/v1/plans/{id}/jobs/{server_id}/hooks/{phase}", name="answer_hook",
        handler=plans.answer_hook, summary="The result of a hook that was answered 202, with its one-time token.",
        body=HookBody, answers={200: HookAnswerView}, problems=(400, 401, 404, 409, 415, 422), public=True,
        headers={"Authorization": "Bearer and the call's callback_token."},
    ),
    Route(
        method="GET", path="/v1/plans/{id}/events", name="list_events", handler=plans.list_events,
        summary="A plan's events; a stream for who accepts text/event-stream.", query=EventsQuery,
        answers={200: Page[EventView]}, problems=(404, 422),
        headers={"Last-Event-ID": "The number of the last event seen."},
    ),
    Route(
        method="GET", path="/v1/clouds", name="list_clouds", handler=service.list_clouds,
        summary="Clouds, with health and limiter.", answers={200: Page[CloudView]},
    ),
    Route(
        method="POST", path="/v1/clouds/{name}/pause", name="pause_cloud", handler=controls.pause_cloud,
        summary="The emergency stop: nothing more is sent to the cloud's project, whatever the plan.", body=ActionBody,
        answers={200: CloudView}, problems=(400, 404, 409, 415, 422),
    ),
    Route(
        method="POST", path="/v1/clouds/{name}/resume", name="resume_cloud", handler=controls.resume_cloud,
        summary="Take the emergency stop back.", body=ActionBody, answers={200: CloudView},
        problems=(400, 404, 409, 415, 422),
    ),
    Route(
        method="POST", path="/v1/tokens", name="create_token", handler=service.create_token,
        summary="Make a token; its secret is in this answer only.", body=TokenBody, answers={201: NewTokenView},
        problems=(400, 409, 415, 422),
    ),
    Route(
        method="GET", path="/v1/tokens", name="list_tokens", handler=service.list_tokens,
        summary="All tokens, without secrets.", answers={200: Page[TokenView]},
    ),
    Route(
        method="DELETE", path="/v1/tokens/{id}", name="revoke_token", handler=service.revoke_token,
        summary="Revoke a token.", answers={200: TokenView}, problems=(404,),
    ),
    Route(
        method="GET", path="/healthz", name="healthz", handler=service.healthz, summary="The process answers.",
        answers={200: AliveView}, public=True,
    ),
    Route(
        method="GET", path="/readyz", name="readyz", handler=service.readyz, summary="Whether the service can work.",
        answers={200: ReadyView, 503: ReadyView}, public=True,
    ),
    Route(
        method="GET", path="/metrics", name="metrics", handler=service.metrics, summary="For Prometheus.",
        answers={200: "text/plain"}, public=True,
    ),
    Route(
        method="GET", path="/openapi.json", name="openapi", handler=service.openapi, summary="This description.",
        answers={200: "application/json"}, public=True,
    ),
)  # fmt: skip
