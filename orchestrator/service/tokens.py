"""Tokens: made, listed, revoked, and recognised on each request."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from orchestrator.errors import Conflict, Fault, NotFound, Unauthenticated
from orchestrator.ledger import tokens as ledger
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.tokens import TokenRecord
from orchestrator.service.errors import RequestInvalid
from orchestrator.service.roles import Principal, Role
from orchestrator.service.views import TokenView

PREFIX = "rbt_"
"""So that scanners of repositories and logs can recognise one."""

REMEMBERED_SECONDS = 5.0
"""How long a revoked token may still be taken, at most."""

REMEMBERED_TOKENS = 10_000


def hash_token(secret: str) -> str:
    """All that is kept of a token. 256 random bits need neither salt nor a slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def create_token(
    engine: AsyncEngine, name: str, role: Role, *, clouds: Sequence[str] = (), max_targets: int | None = None,
    expires: datetime | None = None, created_by: str,
) -> tuple[TokenView, str]:  # fmt: skip
    """A new token and its secret, which is told only here.

    Raises `Conflict` where the name was given before (plans remember their makers by it, so it is never given again),
    and `RequestInvalid` for an `expires` that has passed.
    """
    if expires is not None and expires <= datetime.now(UTC):
        raise RequestInvalid(errors=[Fault(path="expires", code="invalid_value", message="must be in the future")])
    secret = PREFIX + secrets.token_urlsafe(32)
    async with transaction(engine) as conn:
        record = await ledger.insert_token(
            conn, token_id=uuid7(), name=name, sha256=hash_token(secret), role=role.value, clouds=clouds,
            max_targets=max_targets, created_by=created_by, expires_at=expires,
        )  # fmt: skip
    if record is None:
        raise Conflict(f"A token named {name!r} exists or existed; names are never given twice.", code="name_taken")
    return _view(record), secret


async def list_tokens(engine: AsyncEngine) -> list[TokenView]:
    """All tokens, the newest first, revoked ones too."""
    async with engine.connect() as conn:
        return [_view(r) for r in await ledger.all_tokens(conn)]


async def revoke_token(engine: AsyncEngine, token_id: UUID) -> TokenView:
    """Revokes a token; other processes take it for up to five seconds more. Raises `NotFound`."""
    async with transaction(engine) as conn:
        record = await ledger.revoke_token(conn, token_id)
    if record is None:
        raise NotFound("There is no token of that id.")
    return _view(record)


async def find_token(engine: AsyncEngine, name_or_id: str) -> TokenView:
    """The token of that name or id. Raises `NotFound`."""
    for token in await list_tokens(engine):
        if name_or_id in (token.name, str(token.id)):
            return token
    raise NotFound(f"There is no token {name_or_id!r}.")


@dataclass(frozen=True, kw_only=True)
class _Known:
    record: TokenRecord | None
    until: float


class TokenChecker:
    """Recognises tokens, remembering each answer for a few seconds so that a page of requests is one look-up."""

    def __init__(self, engine: AsyncEngine):
        self._engine = engine
        self._known: dict[str | UUID, _Known] = {}

    async def by_secret(self, secret: str) -> Principal:
        """Whose token this is. Raises `Unauthenticated`."""
        digest = hash_token(secret)
        record = await self._look_up(digest)
        if record is None or not hmac.compare_digest(record.sha256, digest):
            raise Unauthenticated
        return _principal(record)

    async def record_of(self, token_id: UUID) -> TokenRecord:
        """The live token of that id, for sessions that were signed with its hash. Raises `Unauthenticated`."""
        record = await self._look_up(token_id)
        if record is None:
            raise Unauthenticated
        return record

    async def by_id(self, token_id: UUID) -> Principal:
        """The live token of that id. Raises `Unauthenticated`."""
        return _principal(await self.record_of(token_id))

    def forget(self) -> None:
        """After a revocation made here, so that this process at least takes the token no more."""
        self._known.clear()

    async def _look_up(self, key: str | UUID) -> TokenRecord | None:
        now = time.monotonic()
        known = self._known.get(key)
        if known is None or known.until < now:
            async with self._engine.connect() as conn:
                record = await (
                    ledger.token_by_sha256(conn, key) if isinstance(key, str) else ledger.token_by_id(conn, key)
                )
            if len(self._known) >= REMEMBERED_TOKENS:
                self._known.clear()
            known = self._known[key] = _Known(record=record, until=now + REMEMBERED_SECONDS)
        record = known.record
        if record is not None and record.expires_at is not None and record.expires_at <= datetime.now(UTC):
            return None
        return record


def _principal(record: TokenRecord) -> Principal:
    return Principal(
        token_id=record.id, name=record.name, role=Role(record.role), clouds=frozenset(record.clouds),
        max_targets=record.max_targets,
    )  # fmt: skip


def _view(record: TokenRecord) -> TokenView:
    return TokenView(
        id=record.id, name=record.name, role=Role(record.role), clouds=list(record.clouds),
        max_targets=record.max_targets, created_by=record.created_by, created_at=record.created_at,
        expires_at=record.expires_at, revoked_at=record.revoked_at,
    )  # fmt: skip
