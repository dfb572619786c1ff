"""The word of who a hook called, given later: with the call's one-time token, and no token of ours."""

import hashlib
from uuid import UUID

from orchestrator.domain.hooks import HookResult, Phase
from orchestrator.errors import Conflict, Unauthenticated
from orchestrator.ledger import hooks as ledger
from orchestrator.ledger.engine import transaction
from orchestrator.service.deps import Deps
from orchestrator.service.views import HookAnswerView

LONGEST_TOKEN = 200


async def answer_hook(
    deps: Deps, plan_id: UUID, server_id: str, phase: str, *, token: str | None, result: HookResult,
    message: str | None,
) -> HookAnswerView:  # fmt: skip
    """Notes the result of a hook that was answered 202; its plan's driver goes by it within a second.

    Raises `Unauthenticated` where the token is not the newest of this server's call, and `Conflict` (`hook_over`) where
    the call is answered already or its time is up.
    """
    if token is None or len(token) > LONGEST_TOKEN or phase not in tuple(Phase):
        raise Unauthenticated("The hook's one-time token is needed: send `Authorization: Bearer <callback_token>`.")
    digest = hashlib.sha256(token.encode()).hexdigest()
    async with transaction(deps.engine) as conn:
        call = await ledger.hook_of_token(conn, plan_id, server_id, phase, digest)
        if call is None:
            raise Unauthenticated("That token is none of this hook's, or a newer call of it has another.")
        if not call.open:
            raise Conflict("The hook has its result already, or its time is up; nothing was changed.", code="hook_over")
        await ledger.answer_hook(conn, call.key, result, message)
    return HookAnswerView(phase=Phase(phase), result=result)
