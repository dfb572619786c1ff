"""The word of who a hook called, given later: with the call's one-time token, and no token of ours."""

import hashlib
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.domain.hooks import HookResult, Phase
from orchestrator.errors import Conflict, Unauthenticated
from orchestrator.ledger import hooks as ledger
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.hooks import HookKey
from orchestrator.service.deps import Deps
from orchestrator.service.views import HookAnswerView

LONGEST_TOKEN = 200


async def answer_hook(
    deps: Deps, plan_id: UUID, server_id: str, phase: str, *, token: str, result: HookResult, message: str | None
) -> HookAnswerView:  # fmt: skip
    """Notes the result of a hook that was answered 202; its plan's driver goes by it within a second.

    Raises what `need_open` does.
    """
    digest = hashlib.sha256(token.encode()).hexdigest()
    async with transaction(deps.engine) as conn:
        key = await _open(conn, plan_id, server_id, phase, digest)
        await ledger.answer_hook(conn, key, result, message)
    return HookAnswerView(phase=Phase(phase), result=result)


async def need_open(deps: Deps, plan_id: UUID, server_id: str, phase: str, token: str | None) -> str:
    """The token, if it can answer now: nothing more is read of who has none.

    Raises `Unauthenticated` where the token is not the newest of this server's call, and `Conflict` (`hook_over`) where
    the call is answered already or its time is up.
    """
    if token is None or len(token) > LONGEST_TOKEN or phase not in tuple(Phase):
        raise Unauthenticated("The hook's one-time token is needed: send `Authorization: Bearer <callback_token>`.")
    digest = hashlib.sha256(token.encode()).hexdigest()
    async with transaction(deps.engine) as conn:
        await _open(conn, plan_id, server_id, phase, digest)
    return token


async def _open(conn: AsyncConnection, plan_id: UUID, server_id: str, phase: str, digest: str) -> HookKey:
    call = await ledger.hook_of_token(conn, plan_id, server_id, phase, digest)
    if call is None:
        raise Unauthenticated("That token is none of this hook's, or a newer call of it has another.")
    if not call.open:
        raise Conflict("The hook has its result already, or its time is up; nothing was changed.", code="hook_over")
    return call.key
