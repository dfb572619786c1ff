"""API tokens: only their hashes are kept, and a name is never given twice, since plans remember who made them by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from orchestrator.ledger.tables import Token

_tokens: Any = Token.__table__
_COLUMNS = (Token.id, Token.name, Token.sha256, Token.role, Token.clouds, Token.max_targets, Token.created_by,
            Token.created_at, Token.expires_at, Token.revoked_at)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TokenRecord:
    """A token's row."""

    id: UUID
    name: str
    sha256: str
    role: str
    clouds: Sequence[str]
    max_targets: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


async def insert_token(
    conn: AsyncConnection, *, token_id: UUID, name: str, sha256: str, role: str, clouds: Sequence[str],
    max_targets: int | None, created_by: str, expires_at: datetime | None,
) -> TokenRecord | None:  # fmt: skip
    """Stores a new token; None: the name is or was another's."""
    row = (
        await conn.execute(
            pg_insert(_tokens)
            .values(id=token_id, name=name, sha256=sha256, role=role, clouds=list(clouds), max_targets=max_targets,
                    created_by=created_by, expires_at=expires_at)
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(*_COLUMNS)
        )
    ).first()  # fmt: skip
    return None if row is None else _record(row)


async def all_tokens(conn: AsyncConnection) -> list[TokenRecord]:
    """Every token, the newest first, revoked ones too."""
    return [_record(r) for r in await conn.execute(select(*_COLUMNS).order_by(Token.id.desc()))]


async def token_by_sha256(conn: AsyncConnection, sha256: str) -> TokenRecord | None:
    """The live token of that hash: neither expired nor revoked."""
    return await _one_live(conn, Token.sha256 == sha256)


async def token_by_id(conn: AsyncConnection, token_id: UUID) -> TokenRecord | None:
    """The live token of that id."""
    return await _one_live(conn, Token.id == token_id)


async def revoke_token(conn: AsyncConnection, token_id: UUID) -> TokenRecord | None:
    """Revokes a token, once; None: there is none of that id."""
    row = (
        await conn.execute(
            update(_tokens)
            .where(_tokens.c.id == token_id)
            .values(revoked_at=func.coalesce(_tokens.c.revoked_at, func.now()))
            .returning(*_COLUMNS)
        )
    ).first()
    return None if row is None else _record(row)


async def _one_live(conn: AsyncConnection, condition: ColumnElement[bool]) -> TokenRecord | None:
    row = (
        await conn.execute(
            select(*_COLUMNS).where(
                condition,
                Token.revoked_at.is_(None),
                func.coalesce(Token.expires_at > func.clock_timestamp(), True),
            )
        )
    ).first()
    return None if row is None else _record(row)


def _record(row: Any) -> TokenRecord:
    return TokenRecord(**row._mapping)  # noqa: SLF001  SQLAlchemy's public name for it
