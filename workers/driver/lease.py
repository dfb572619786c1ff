"""The driver's side of its lease: renewed in good time, and looked at right before every write."""

import asyncio
import time
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.errors import LeaseLost
from orchestrator.failpoints import failpoint
from orchestrator.ledger import leases
from orchestrator.ledger.drive import Ownership
from orchestrator.ledger.reconcile import LastSeen, last_seen
from orchestrator.log import get_logger

log = get_logger(__name__)

LEASE_SECONDS = 9.0
RENEW_SECONDS = 2.0
MARGIN_SECONDS = 3.0
"""A call may only be written while the lease has this much left by our own clock: wide, since a process can be
frozen between the look and the write (docs/explanation/guarantees.md)."""


def boot_clock() -> float:
    """Seconds since boot, suspended time included: a sleeping machine's lease goes on ageing."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """Holds one project's lease and tells its age. Also the driver's idea of the database's time."""

    def __init__(
        self, engine: AsyncEngine, own: Ownership, *, asked_at: float, database_now: datetime, before: LastSeen | None
    ) -> None:
        self._engine = engine
        self.own = own
        self.before = before
        """The lease as the driver before left it."""
        self._asked_at = asked_at
        self._now = (database_now, asked_at)

    @classmethod
    async def take(cls, engine: AsyncEngine, project: int, deployment: str, holder: str) -> "LeaseKeeper | None":
        """Takes the lease if it is free; None while another has it."""
        asked_at = boot_clock()
        async with engine.begin() as conn:
            before = await last_seen(conn, leases.drive_lease(project))
            fence = await leases.acquire(conn, leases.drive_lease(project), holder, LEASE_SECONDS)
            if fence is None:
                return None
            now = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
        own = Ownership(project=project, deployment=deployment, fence=fence)
        return cls(engine, own, asked_at=asked_at, database_now=now, before=before)

    def fresh(self) -> bool:
        """Whether a call may be written now: counted from before the renewal was asked for, so never too long."""
        return boot_clock() < self._asked_at + LEASE_SECONDS - MARGIN_SECONDS

    def now(self) -> datetime:
        """The database's clock, carried on by ours since the last renewal."""
        then, at = self._now
        return then + timedelta(seconds=boot_clock() - at)

    async def keep(self) -> None:
        """Renews until cancelled. Raises `LeaseLost` when another has taken it."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            asked_at = boot_clock()
            try:
                failpoint("lease.before_renew")
                async with asyncio.timeout(RENEW_SECONDS * 2), self._engine.begin() as conn:
                    kept = await leases.renew(conn, self.own.lease, self.own.fence, LEASE_SECONDS)
                    now = (await conn.execute(text("SELECT clock_timestamp()"))).scalar_one()
            except (DBAPIError, OSError, TimeoutError) as e:
                # Not lost yet: nothing is sent once it isn't fresh, and what the cloud answered waits to be written.
                log.warning("lease_renewal_failed", project=self.own.project, error=str(e)[:200])
                continue
            if not kept:
                raise LeaseLost
            self._asked_at, self._now = asked_at, (now, asked_at)

    async def give_back(self) -> None:
        """Lets the next driver start at once."""
        async with self._engine.begin() as conn:
            await leases.release(conn, self.own.lease, self.own.fence)
