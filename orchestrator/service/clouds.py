"""The clouds: as configured here, and as the workers found them."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.config import CloudSettings, cloud_names, load_cloud
from orchestrator.errors import CloudConfigInvalid, Conflict, NotFound
from orchestrator.ledger.clouds import CloudRecord, cloud_records
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.projects import release_project, stop_project
from orchestrator.log import get_logger
from orchestrator.service.roles import Principal, Right
from orchestrator.service.views import CloudView, HealthView, ProjectView

log = get_logger(__name__)

REMEMBERED_SECONDS = 10.0
"""How long a change of clouds.yaml may take to be noticed."""


class CloudBook:
    """The clouds of clouds.yaml that may be used. Files are read in a thread, and remembered for a few seconds."""

    def __init__(self, allowed: Sequence[str] = ()):
        self._allowed = tuple(allowed)
        self._names: tuple[float, tuple[str, ...]] | None = None
        self._settings: dict[str, tuple[float, CloudSettings | None]] = {}
        self._reading = asyncio.Lock()  # a file is parsed once for however many requests that wait for it

    async def names(self) -> tuple[str, ...]:
        """Sorted. Raises `CloudConfigInvalid` where clouds.yaml can't be read."""
        async with self._reading:
            if self._names is None or self._names[0] < time.monotonic():
                found = tuple(await asyncio.to_thread(cloud_names, self._allowed))
                self._names = (time.monotonic() + REMEMBERED_SECONDS, found)
            return self._names[1]

    async def write_rate(self, name: str) -> float | None:
        """Rebuild calls per second that the cloud's settings allow; None for one that isn't to be had (any more)."""
        settings = await self.settings(name)
        return settings.write_rate if settings else None

    async def settings(self, name: str) -> CloudSettings | None:
        """The cloud's `rebuild:` section; None for one that isn't to be had (any more)."""
        async with self._reading:
            known = self._settings.get(name)
            if known is None or known[0] < time.monotonic():
                settings = await asyncio.to_thread(self._load, name)
                known = self._settings[name] = (time.monotonic() + REMEMBERED_SECONDS, settings)
            return known[1]

    def _load(self, name: str) -> CloudSettings | None:
        try:
            return load_cloud(name, allowed=self._allowed).settings
        except CloudConfigInvalid as e:
            log.info("cloud_not_configured", cloud=name, problem=e.message)
            return None


async def list_clouds(engine: AsyncEngine, book: CloudBook, principal: Principal) -> list[CloudView]:
    """The clouds that the token may see: those configured, and those that plans were made for."""
    principal.need(Right.READ)
    configured = await book.names()
    async with engine.connect() as conn:
        records = await cloud_records(conn)
    names = sorted({*configured, *records})
    return [
        _view(name, records.get(name), configured=name in configured)
        for name in names
        if not principal.clouds or name in principal.clouds
    ]


async def stop_cloud(
    engine: AsyncEngine, book: CloudBook, principal: Principal, name: str, *, reason: str | None
) -> CloudView:
    """The emergency stop of a cloud's project, under whatever name: nothing more is sent, whatever the plan; what is in
    flight goes on. Raises `NotFound`, and `Conflict` (`never_signed_in`) for a cloud whose project is not known yet."""
    return await _act(engine, book, principal, name, stop_project, reason)


async def release_cloud(
    engine: AsyncEngine, book: CloudBook, principal: Principal, name: str, *, reason: str | None
) -> CloudView:
    """Takes the emergency stop back; raises what `stop_cloud` does."""
    return await _act(engine, book, principal, name, release_project, reason)


async def _act(
    engine: AsyncEngine, book: CloudBook, principal: Principal, name: str, act: Any, reason: str | None
) -> CloudView:
    principal.need(Right.STOP_CLOUDS)
    principal.need_cloud(name)
    configured = name in await book.names()
    async with transaction(engine) as conn:
        record = (await cloud_records(conn, [name])).get(name)
        if record is None and not configured:
            raise NotFound("There is no cloud of that name.")
        if record is None or record.project is None:
            raise Conflict(
                "No worker has signed in to this cloud yet, so its project is not known, and nothing is sent to it.",
                code="never_signed_in",
            )
        await act(conn, record.project, by=principal.name, why=reason)
        return _view(name, (await cloud_records(conn, [name]))[name], configured=configured)


def _view(name: str, record: CloudRecord | None, *, configured: bool) -> CloudView:
    project = None
    if record is not None and record.deployment is not None:
        project = ProjectView(
            deployment=record.deployment, region=record.region or "", project_id=record.project_id or "",
            paused=bool(record.paused), paused_reason=record.paused_reason,
            paused_by=record.paused_by, paused_at=record.paused_at,
        )  # fmt: skip
    health = HealthView(status="unknown", error=None, checked_at=None)
    if record is not None and record.healthy is not None:
        health = HealthView(
            status="ok" if record.healthy else "error", error=record.error, checked_at=record.checked_at
        )
    limiter = dict(record.limiter) if record is not None and record.limiter is not None else None
    return CloudView(name=name, configured=configured, project=project, health=health, limiter=limiter)
