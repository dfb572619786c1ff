"""Tokens: only hashes, live ones only, and names for ever."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection
from uuid_utils.compat import uuid7

from orchestrator.ledger.engine import open_engine, transaction
from orchestrator.ledger.tokens import (
    TokenRecord,
    all_tokens,
    insert_token,
    revoke_token,
    token_by_id,
    token_by_sha256,
)


async def make(conn: AsyncConnection, name: str, **changes: Any) -> TokenRecord | None:
    fields: dict[str, Any] = {
        "token_id": uuid7(), "name": name, "sha256": name.ljust(64, "0"), "role": "viewer", "clouds": ["alpha"],
        "max_targets": 5, "created_by": "test", "expires_at": None,
    }  # fmt: skip
    return await insert_token(conn, **fields | changes)


async def test_a_live_token_is_found_by_hash_and_by_id(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        made = await make(conn, "a", expires_at=datetime.now(UTC) + timedelta(hours=1))
        assert made is not None
        assert (made.clouds, made.max_targets) == (["alpha"], 5)
        assert await token_by_sha256(conn, made.sha256) == made
        assert await token_by_id(conn, made.id) == made
        assert await token_by_sha256(conn, "f" * 64) is None


async def test_expired_and_revoked_tokens_are_found_no_more_but_stay_listed(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        old = await make(conn, "old", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        gone = await make(conn, "gone")
        assert old is not None
        assert gone is not None
        revoked = await revoke_token(conn, gone.id)
        assert revoked is not None
        for token in (old, gone):
            assert await token_by_sha256(conn, token.sha256) is None
            assert await token_by_id(conn, token.id) is None
        assert [t.name for t in await all_tokens(conn)] == ["gone", "old"]
        again = await revoke_token(conn, gone.id)
        assert again is not None
        assert again.revoked_at == revoked.revoked_at, "the first time stands"
        assert await revoke_token(conn, uuid7()) is None


async def test_a_name_is_never_given_twice(database_url: str) -> None:
    async with open_engine(database_url, name="test") as engine, transaction(engine) as conn:
        first = await make(conn, "ci")
        assert first is not None
        await revoke_token(conn, first.id)
        assert await make(conn, "ci", sha256="e" * 64) is None
