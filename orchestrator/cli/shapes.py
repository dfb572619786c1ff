"""Which columns plans, jobs, events and the rest have in tables and CSV."""

from collections.abc import Mapping
from typing import Any

from orchestrator.cli.output import Column, field, time_field
from orchestrator.domain.states import JobState


def _counts(item: Mapping[str, Any]) -> str:
    counts = item.get("counts") or {}
    return ", ".join(f"{counts[s]} {s}" for s in JobState if counts.get(s))


def _reason(item: Mapping[str, Any]) -> str:
    reason = item.get("reason")
    if not isinstance(reason, Mapping):
        return ""
    return ": ".join(str(part) for part in (reason.get("code"), reason.get("message")) if part)


def _approval(wave: Mapping[str, Any]) -> str:
    approval = wave.get("approval") or {}
    by = approval.get("approved_by")
    return f"by {by}" if by else "needed" if approval.get("needed") else ""


def _health(item: Mapping[str, Any]) -> str:
    healthy = item.get("healthy")
    return "not looked at" if healthy is None else "healthy" if healthy else "unhealthy"


PLANS: tuple[Column, ...] = (
    field("id"),
    field("name"),
    field("cloud"),
    field("status"),
    field("counts", "total", name="servers"),
    field("counts", "succeeded", name="succeeded"),
    field("counts", "failed", name="failed"),
    time_field("created_at"),
    field("created_by"),
)

PLAN: tuple[Column, ...] = (
    field("id"),
    field("url"),
    field("name"),
    field("cloud"),
    field("status"),
    ("reason", _reason),
    field("counts", "total", name="servers"),
    ("counts", _counts),
    field("max_in_flight"),
    field("rate", "allowed_per_second", name="allowed_per_second"),
    field("rate", "used_per_second", name="used_per_second"),
    ("eta", lambda plan: time_field("finish_at")[1](plan.get("eta") or {})),
    field("eta", "limited_by", name="limited_by"),
    field("digest"),
    field("rollback_of"),
    field("labels"),
    field("created_by"),
    time_field("created_at"),
    time_field("started_at"),
    time_field("finished_at"),
    time_field("start_at"),
    time_field("expires_at"),
)

PLAN_CSV: tuple[Column, ...] = (
    *(column for column in PLAN if column[0] not in ("counts", "servers")),
    field("counts", "total", name="total"),
    *(field("counts", str(state), name=str(state)) for state in JobState),
)

WAVES: tuple[Column, ...] = (
    field("name", name="wave"),
    field("size"),
    field("status"),
    ("counts", _counts),
    time_field("bake_until"),
    ("approval", _approval),
)

JOBS: tuple[Column, ...] = (
    field("server_id"),
    field("name"),
    field("state"),
    field("wave"),
    field("verdict"),
    field("attempts"),
    field("zone"),
    time_field("updated_at"),
    ("reason", _reason),
)

JOBS_CSV: tuple[Column, ...] = (*JOBS, field("previous_image"), field("target_image"))

ATTEMPTS: tuple[Column, ...] = (
    field("number", name="attempt"),
    time_field("sent_at"),
    field("request_id"),
    field("http_status"),
    field("classification"),
)

EVIDENCE: tuple[Column, ...] = (
    field("attempt"),
    time_field("at"),
    field("kind"),
    field("value"),
)

RESOLVED: tuple[Column, ...] = (
    field("server_id"),
    field("name"),
    field("attempt"),
    field("decision"),
    field("settled"),
    field("job", "state", name="state"),
    field("problem", "code", name="code"),
    field("problem", "detail", name="message"),
)

EVENTS: tuple[Column, ...] = (
    field("seq"),
    time_field("at"),
    field("type"),
    field("server_id"),
    field("from"),
    field("to"),
    field("actor"),
    ("reason", _reason),
)

CLOUDS: tuple[Column, ...] = (
    field("name"),
    ("health", _health),
    field("project", "project_id", name="project"),
    field("project", "region", name="region"),
    field("project", "paused", name="paused"),
    field("limiter"),
    time_field("checked_at"),
    field("error"),
)

TOKENS: tuple[Column, ...] = (
    field("id"),
    field("name"),
    field("role"),
    field("clouds"),
    field("max_targets"),
    field("created_by"),
    time_field("created_at"),
    time_field("expires_at"),
    time_field("revoked_at"),
)
