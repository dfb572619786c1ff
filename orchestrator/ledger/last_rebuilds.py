"""What the ledger knows of each server's newest rebuild: one row a server, however many plans there were."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.states import JobState
from orchestrator.ledger.sql import columns_of, sql, unnest

REMEMBERED_STATES = frozenset({JobState.SENDING, JobState.REBUILDING, JobState.RESOLVING, JobState.SUCCEEDED,
                               JobState.FAILED, JobState.STUCK, JobState.UNRESOLVED})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """How a server's rebuild stands now; `action`: the request id of its call, where it is known."""

    server_id: str
    plan_id: UUID
    state: JobState
    action: str | None


async def remember(conn: AsyncConnection, deployment: str, sent: Sequence[Remembered], undone: Sequence[str]) -> None:
    """Keeps each server's newest rebuild. One whose call proved to have had no effect (`undone`) is `pending`: how the
    one before it ended is forgotten, so that the next plan asks the cloud's own actions."""
    latest = {r.server_id: r for r in sent}
    if latest:
        columns = {"server_id": "text", "plan_id": "uuid", "state": "text", "action": "text"}
        rows = [(r.server_id, r.plan_id, r.state.value, r.action) for r in latest.values()]
        await conn.execute(
            sql(f"""
            INSERT INTO last_rebuilds AS l (deployment, server_id, plan_id, state, actions, at)
            SELECT :deployment, server_id, plan_id, state, array_remove(ARRAY[action], NULL), now()
            FROM {unnest("i", columns)} ORDER BY server_id
            ON CONFLICT (deployment, server_id) DO UPDATE
            SET plan_id = excluded.plan_id, state = excluded.state, at = excluded.at,
                actions = (l.actions || excluded.actions)[greatest(1, cardinality(l.actions) - 8):]"""),  # noqa: S608
            {"deployment": deployment} | columns_of(columns, rows),
        )
    if undone:
        await conn.execute(
            sql("""
            UPDATE last_rebuilds SET state = 'pending'
            WHERE deployment = :deployment AND server_id = ANY(CAST(:ids AS text[]))"""),
            {"deployment": deployment, "ids": list(undone)},
        )
