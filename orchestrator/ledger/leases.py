"""Leases with fencing numbers. A row is never deleted, and a fence never repeats.

A lease counts only on the database that gave it: its incarnation is the server's system identifier and timeline, which
a failover, a restored backup and a copy all change. So every lease is void by itself on the new one, and what the old
one's last commits said has to be reconciled with the cloud before anything is sent (`ledger/reconcile.py`).
"""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.errors import LeaseLost
from orchestrator.ledger.sql import sql

INCARNATION = """(SELECT system_identifier || '/' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
          FROM pg_control_system())"""
"""The database that answers: system identifier and timeline. Only a primary has one; a standby answers an error."""


FENCE = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"
"""Fences grow, and are microseconds of the database's clock: one that a failover lost is never given out again."""


async def incarnation(conn: AsyncConnection) -> str:
    """The database that answers: its system identifier and timeline."""
    return str((await conn.execute(sql(f"SELECT {INCARNATION}"))).scalar_one())


def drive_lease(project: int) -> str:
    """The name of the lease to drive a project."""
    return f"drive:{project}"


def prepare_lease(plan_id: object) -> str:
    """The name of the lease to prepare a plan."""
    return f"prepare:{plan_id}"


async def acquire(conn: AsyncConnection, name: str, holder: str, seconds: float) -> int | None:
    """Takes the lease if it is free or expired: its new fence, or None while another holds it."""
    row = await conn.execute(
        sql(f"""
        INSERT INTO leases AS l (name, holder, fence, incarnation, acquired_at, expires_at)
        VALUES (:name, :holder, {FENCE}, {INCARNATION}, clock_timestamp(),
                clock_timestamp() + make_interval(secs => :seconds))
        ON CONFLICT (name) DO UPDATE
        SET holder = excluded.holder, fence = greatest(l.fence + 1, excluded.fence), incarnation = excluded.incarnation,
            acquired_at = excluded.acquired_at, expires_at = excluded.expires_at
        WHERE l.expires_at < clock_timestamp() OR l.incarnation <> excluded.incarnation
        RETURNING fence"""),  # noqa: S608
        {"name": name, "holder": holder, "seconds": seconds},
    )
    fence: int | None = row.scalar_one_or_none()
    return fence


async def renew(conn: AsyncConnection, name: str, fence: int, seconds: float) -> bool:
    """Prolongs the lease; False: another has it, or another database answers."""
    result = await conn.execute(
        sql(f"""
        UPDATE leases SET expires_at = clock_timestamp() + make_interval(secs => :seconds)
        WHERE name = :name AND fence = :fence AND incarnation = {INCARNATION}"""),  # noqa: S608
        {"name": name, "fence": fence, "seconds": seconds},
    )
    return result.rowcount == 1


async def release(conn: AsyncConnection, name: str, fence: int) -> None:
    """Gives the lease back, so that the next one need not wait for its end."""
    await conn.execute(
        sql("UPDATE leases SET expires_at = '-infinity' WHERE name = :name AND fence = :fence"),
        {"name": name, "fence": fence},
    )


async def release_all(conn: AsyncConnection, holders: Sequence[str]) -> int:
    """Gives back every lease of processes that are surely dead, also one that only looks expired while the database's
    clock is wrong; how many those were."""
    result = await conn.execute(
        sql("""
        UPDATE leases SET expires_at = '-infinity'
        WHERE holder = ANY(CAST(:holders AS text[])) AND expires_at > '-infinity'"""),
        {"holders": list(holders)},
    )
    return int(result.rowcount)


async def guard(conn: AsyncConnection, name: str, fence: int, *, unexpired: bool = False) -> None:
    """Locks the lease row FOR SHARE: nobody takes over until this transaction ends. First in the lock order.

    `unexpired`: for what must not happen on an expired lease, though nobody has taken it yet (sending).
    Raises `LeaseLost`.
    """
    alive = " AND expires_at > clock_timestamp()" if unexpired else ""
    row = await conn.execute(
        sql(f"""
        SELECT 1 FROM leases
        WHERE name = :name AND fence = :fence AND incarnation = {INCARNATION}{alive} FOR SHARE"""),  # noqa: S608
        {"name": name, "fence": fence},
    )
    if row.first() is None:
        raise LeaseLost
