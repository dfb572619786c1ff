"""A mirror of the project's servers, as far as they matter to plans: filled by full reads, kept fresh by changes."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.clouds.protocol import Cloud, Server
from workers.driver.census import Census

OVERLAP = timedelta(seconds=10)
"""How far each poll reaches back behind the `Date` of the one before: the cloud's own clocks differ a little."""
FRESH_SECONDS = 10.0
"""A server may be wiped by a view of it that is at most this old."""
FULL_SECONDS = 60.0
"""How often everything is read in full: metadata and tags don't move `updated`."""
CHANGES_PAGE = 200
"""Servers a page of changes: parsing a thousand at once would hold up the loop, and permits would come too late."""
FULL_PAGE = 1000
GONE_SECONDS, GONE_READS = 10.0, 4
"""A server is believed gone after so many reads by its id over so long that all say 404: one may be a mistake of
something in between, or of a cell that is being restarted."""
FEW = 20
"""Up to so many servers are read one by one: cheaper than a list of the whole project."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A server as seen, and when: times of `time.monotonic()`, taken before the read was sent."""

    server: Server | None
    """None: the cloud says that it is not there."""
    seen_at: float
    """When this very view was read."""
    date: datetime
    """The answer's `Date`."""


@dataclass
class Mirror:
    """All views of one project. `wanted`: the server ids that matter; others are not kept."""

    cloud: Cloud
    wanted: set[str] = field(default_factory=set)
    whole: bool = False
    """Keep all that the cloud shows of a server; a driver's 100,000 are slimmed."""
    addressed: Callable[[str], bool] = lambda _: False
    """Of which servers the addresses are kept."""
    _views: dict[str, View] = field(default_factory=dict)
    _missing: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Servers that answer 404 to a read by their id: since when, and how often in a row."""
    _since: datetime | None = None
    _changes_at: float = float("-inf")
    """When the last complete poll began: every view is confirmed as of then."""
    full_at: float = float("-inf")
    """When the last full read began."""
    census: Census | None = None
    """All servers of the project, where a disruption budget counts them."""

    def view(self, server_id: str) -> View | None:
        """The newest view of a server, whatever its age."""
        return self._views.get(server_id)

    def age(self, server_id: str) -> float:
        """Seconds since a server's view was read or confirmed by a poll; infinite where there is none."""
        view = self._views.get(server_id)
        if view is None:
            return float("inf")
        # A cell that comes back, or a server that shows itself again, moves no `updated`: no poll tells of it.
        unseen = view.server is None or view.server.status == "UNKNOWN"
        return time.monotonic() - (view.seen_at if unseen else max(view.seen_at, self._changes_at))

    def unseen(self) -> int:
        """How many of the wanted servers were never read."""
        return len(self.wanted) - len(self._views.keys() & self.wanted)

    def want(self, server_ids: Collection[str]) -> None:
        """What matters from now on."""
        self.wanted = set(server_ids)
        for gone in self._views.keys() - self.wanted:
            del self._views[gone]

    def count(self, keys: frozenset[str] | None) -> None:
        """Whether all servers are to be counted from now on, with which metadata. A wider census begins anew: it is
        complete after the next full read, which is due at once."""
        if keys is None:
            self.census = None
        elif self.census is None or not keys <= self.census.keys:
            self.census = Census(keys=keys)
            self.full_at = float("-inf")

    def fresh_census(self, seconds: float) -> Census | None:
        """The census, where it is complete and confirmed within so many seconds."""
        fresh = time.monotonic() <= self._changes_at + seconds
        return self.census if self.census is not None and self.census.complete and fresh else None

    async def read_few(self, server_ids: Iterable[str]) -> list[Server]:
        """Reads servers one by one."""
        return [s for i in server_ids if (s := (await self.read_one(i)).server)]

    async def read_one(self, server_id: str) -> View:
        """Reads one server by its id: the only read that proves one gone."""
        began = time.monotonic()
        server, date = await self.cloud.get_server(server_id)
        view = View(server=self._kept(server) if server else None, seen_at=began, date=date)
        if server is None:
            since, times = self._missing.get(server_id, (began, 0))
            self._missing[server_id] = (since, times + 1)
        else:
            self._missing.pop(server_id, None)
        self._views[server_id] = view
        if self.census is not None:
            self._count_one(self.census, server_id, server)
        return view

    def _count_one(self, census: Census, server_id: str, server: Server | None) -> None:
        if server is not None:
            census.note(server)
        elif self.surely_gone(server_id):
            census.forget(server_id)

    async def read_patiently(self, server_ids: Iterable[str]) -> dict[str, Server | None]:
        """Reads servers by their ids, and those that answer 404 again, until they show themselves or are surely gone
        (None). Where none answers 404 nothing waits."""
        asked = list(server_ids)
        left = asked
        while left:
            began = time.monotonic()
            for server_id in left:
                await self.read_one(server_id)
            left = [i for i in left if self._views[i].server is None and not self.surely_gone(i)]
            if left:
                await asyncio.sleep(began + GONE_SECONDS / (GONE_READS - 1) - time.monotonic())
        return {i: self._views[i].server for i in asked}

    def surely_gone(self, server_id: str) -> bool:
        """Whether a server's 404 is believed: said often enough, for long enough."""
        since, times = self._missing.get(server_id, (float("inf"), 0))
        return times >= GONE_READS and time.monotonic() >= since + GONE_SECONDS

    async def read_all(self) -> list[Server]:
        """Reads the whole project; what a list leaves out keeps its old view, for a list proves nobody gone."""
        if len(self.wanted) <= FEW and self.census is None:
            began = time.monotonic()
            wanted = list(self.wanted)  # it may change meanwhile
            servers = await self.read_few(wanted)
            oldest = min((v.date for i in wanted if (v := self._views.get(i))), default=None)
            self._since = oldest or self._since
        else:
            census = self.census
            began, servers = await self._read(None)
            if census is not None and census is self.census:
                census.complete = True
        self._changes_at = self.full_at = began
        return servers

    async def read_changes(self) -> list[Server]:
        """Reads what has changed since the last read: the changed servers that matter, deleted ones too."""
        if self._since is None:
            return await self.read_all()
        began, servers = await self._read(self._since - OVERLAP)
        self._changes_at = began
        return servers

    async def _read(self, changes_since: datetime | None) -> tuple[float, list[Server]]:
        began, first, found = time.monotonic(), None, []
        size = FULL_PAGE if changes_since is None else CHANGES_PAGE
        async for page in self.cloud.list_servers(changes_since=changes_since, page=size):
            first = first or page.date
            for server in page.servers:
                if self.census is not None:
                    self.census.note(server)
                if server.id in self.wanted:
                    slim = self._kept(server)
                    self._views[server.id] = View(server=slim, seen_at=began, date=page.date)
                    self._missing.pop(server.id, None)
                    found.append(slim)
        self._since = first or self._since
        return began, found

    def _kept(self, server: Server) -> Server:
        """Without what no decision looks at: 100,000 of them are kept."""
        if self.whole:
            return server
        return replace(server, addresses=server.addresses if self.addressed(server.id) else {}, links=(), flavor={})
