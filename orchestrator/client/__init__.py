"""The typed Python client of the REST API.

async with RebuildClient("http://127.0.0.1:8080", token) as client:
    plan = await client.submit(spec, idempotency_key=new_idempotency_key())
"""

from orchestrator.client.client import Decision, RebuildClient, new_idempotency_key
from orchestrator.client.errors import ApiProblem, ApiUnreachable
from orchestrator.client.models import (
    Cloud,
    Document,
    Eta,
    Event,
    Job,
    JobDetail,
    Page,
    Plan,
    Rate,
    Reason,
    Token,
    Wave,
)

__all__ = [
    "ApiProblem",
    "ApiUnreachable",
    "Cloud",
    "Decision",
    "Document",
    "Eta",
    "Event",
    "Job",
    "JobDetail",
    "Page",
    "Plan",
    "Rate",
    "Reason",
    "RebuildClient",
    "Token",
    "Wave",
    "new_idempotency_key",
]
