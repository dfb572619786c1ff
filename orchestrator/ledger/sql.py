"""How the ledger's statements take lists: one array parameter a column, unnested into rows."""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection


@functools.cache
def sql(statement: str) -> TextClause:
    """A statement parsed once: the hot ones run a hundred times a second."""
    return text(statement)


def unnest(alias: str, columns: Mapping[str, str]) -> str:
    """`unnest(…) AS alias(…)` over parameters named like the columns; jsonb goes as text and is cast inside."""
    arrays = ", ".join(f"CAST(:{name} AS {_wire(kind)}[])" for name, kind in columns.items())
    return f"unnest({arrays}) AS {alias}({', '.join(columns)})"


def columns_of(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Rows turned into one list a column, as `unnest`'s parameters."""
    lists: list[list[Any]] = [[] for _ in columns]
    kinds = list(columns.values())
    for row in rows:
        for i, value in enumerate(row):
            lists[i].append(to_json(value) if kinds[i] == "jsonb" else value)
    return dict(zip(columns, lists, strict=True))


def to_json(value: Any) -> str | None:
    """JSON text for a jsonb column; None stays NULL."""
    return None if value is None else json.dumps(value, separators=(",", ":"), default=str)


async def copy_in(conn: AsyncConnection, table: str, columns: Sequence[str], records: Iterable[Sequence[Any]]) -> None:
    """COPY on the raw asyncpg connection, inside the transaction that `conn` has begun."""
    await conn.execute(text("SELECT 1"))  # SQLAlchemy begins on the first statement: COPY alone would autocommit
    raw = await conn.get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.copy_records_to_table(table, columns=list(columns), records=records)


def _wire(kind: str) -> str:
    return "text" if kind == "jsonb" else kind
