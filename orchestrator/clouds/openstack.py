"""The cloud protocol on OpenStack: Nova for servers, Glance for images."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

from orchestrator.clouds.answers import classify, error_key, error_message
from orchestrator.clouds.config import CloudConfig
from orchestrator.clouds.connection import Connection
from orchestrator.clouds.microversions import REIMAGE, Feature, Microversions, compute_root
from orchestrator.clouds.pacing import Limiter
from orchestrator.clouds.parse import parse_action, parse_image, parse_json, parse_object, parse_objects, parse_server
from orchestrator.clouds.protocol import (
    Action,
    Answer,
    Cause,
    Effect,
    Image,
    Project,
    Ready,
    Selection,
    Server,
    ServerPage,
)
from orchestrator.clouds.sign_in import SignedIn, TokenCache
from orchestrator.clouds.transport import NoAnswer, RawAnswer
from orchestrator.errors import (
    CloudAnswerInvalid,
    CloudConfigInvalid,
    CloudError,
    CloudNotOffered,
    CloudSignInRefused,
)

PAGE = 1000
"""Servers a page; Nova's own limit (nova-facts 7)."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


class OpenStackCloud:
    """A signed-in connection to one project of an OpenStack cloud (`protocol.Cloud`).

    `reads`: the limiter that every read waits for; None reads as fast as asked. Rebuild calls are paced by the caller.
    """

    def __init__(self, config: CloudConfig, tokens: TokenCache, *, reads: Limiter | None = None) -> None:
        self.name = config.name
        self._connection = Connection(config, tokens, reads)

    # Identity

    async def sign_in(self) -> Project:
        """See the protocol. Also finds the compute service's microversions, once."""
        return (await self._connection.sign_in()).project

    def pace_reads(self, reads: Limiter) -> None:
        """The limiter for reads from now on; its key needs the project, which is known after the sign-in."""
        self._connection.reads = reads

    async def renew_token(self) -> None:
        """See the protocol."""
        await self._connection.renew_token()

    @property
    def user_id(self) -> str | None:
        """See the protocol."""
        return self._connection.user_id

    @property
    def microversions(self) -> Microversions:
        """What the cloud offers and what is spoken. Known after `sign_in`."""
        return self._connection.microversions

    @property
    def max_microversion(self) -> str | None:
        """The highest that may be used, such as `2.93`; None where there are none."""
        best = self.microversions.best
        return f"{best[0]}.{best[1]}" if best else None

    @property
    def supports_reimage(self) -> bool:
        """Whether volume-booted servers can be rebuilt here (with consent). Known after `sign_in`."""
        return self.microversions.supports_reimage

    @property
    def features(self) -> frozenset[Feature]:
        """What can be read and asked for. Known after `sign_in`."""
        return self.microversions.features

    # Reading

    async def list_servers(
        self,
        *,
        changes_since: datetime | None = None,
        selection: Selection | None = None,
        name: str | None = None,
        page: int = PAGE,
    ) -> AsyncIterator[ServerPage]:
        """See the protocol. A zone can't be asked for below microversion 2.83; the caller matches it."""
        await self.sign_in()
        filters = self._filters(changes_since, selection, name)
        marker: str | None = None
        while True:
            params = [("limit", str(page)), *filters, *([("marker", marker)] if marker else [])]
            answer, date = await self._connection.read(self._servers("/detail"), params)
            value = parse_json(answer.body)
            servers = await _parsed(parse_objects(value, "servers"))
            following = _next_marker(value, servers, page)
            if following is not None and following == marker:
                raise CloudAnswerInvalid("The cloud's list of servers does not end: its next page is the same again.")
            marker = following
            yield ServerPage(
                servers=servers if name is None else tuple(s for s in servers if s.name == name), date=date
            )
            if marker is None:
                return

    def _filters(
        self, changes_since: datetime | None, selection: Selection | None, name: str | None
    ) -> list[tuple[str, str]]:
        filters: list[tuple[str, str]] = []
        if changes_since is not None:
            filters.append(("changes-since", changes_since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
        if selection is not None:
            filters += [("status", status) for status in selection.statuses]
            if selection.image:
                filters.append(("image", selection.image))
            if selection.tags and Feature.TAGS in self.features:
                filters.append(("tags", ",".join(selection.tags)))
        if name is not None:
            filters.append(("name", exactly(name)))
        return filters

    async def get_server(self, server_id: str) -> tuple[Server | None, datetime]:
        """See the protocol."""
        signed = await self._connection.sign_in()
        if not _ID.fullmatch(server_id):
            return None, signed.cloud_now()
        answer, date = await self._connection.read(self._servers(f"/{server_id}"), missing="itemNotFound")
        return (None if answer.status == 404 else parse_server(parse_object(parse_json(answer.body), "server"))), date

    async def get_action(self, server_id: str, request_id: str) -> Action | None:
        """See the protocol. A 404 about the server proves nothing about the action: it raises `CloudAnswerInvalid`."""
        if not (_ID.fullmatch(server_id) and _ID.fullmatch(request_id)):
            raise CloudAnswerInvalid(f"{server_id!r} or {request_id!r} is not an id.")
        await self.sign_in()
        url = self._servers(f"/{server_id}/os-instance-actions/{request_id}")
        answer = await self._actions(url)
        if answer.status == 404:
            said = error_message(answer.body)
            if not said.startswith("Action "):
                raise CloudAnswerInvalid(f"The cloud did not look for the action: {said}")
            return None
        return parse_action(parse_object(parse_json(answer.body), "instanceAction"))

    async def list_actions(self, server_id: str) -> Sequence[Action]:
        """See the protocol. A server that is gone raises `CloudAnswerInvalid`: it is not one without actions."""
        if not _ID.fullmatch(server_id):
            raise CloudAnswerInvalid(f"{server_id!r} is not an id.")
        await self.sign_in()
        answer = await self._actions(self._servers(f"/{server_id}/os-instance-actions"))
        if answer.status == 404:
            raise CloudAnswerInvalid(f"The cloud did not look for actions: {error_message(answer.body)}")
        actions = [parse_action(raw) for raw in parse_objects(parse_json(answer.body), "instanceActions")]
        return sorted(actions, key=lambda action: action.start_time, reverse=True)

    async def _actions(self, url: Callable[[SignedIn], str]) -> RawAnswer:
        """A 200, or Nova's own 404. Raises `CloudNotOffered` where the path is unknown or the policy forbids it."""
        try:
            answer, _ = await self._connection.read(url, missing=".*")
        except CloudSignInRefused as e:
            raise CloudNotOffered(e.message) from None
        if answer.status == 404 and error_key(answer.body) != "itemNotFound":
            raise CloudNotOffered(f"{self.name} has no instance actions.")
        return answer

    async def find_images(self, reference: str) -> Sequence[Image]:
        """See the protocol."""
        signed = await self._connection.sign_in()
        if signed.image_url is None:
            raise CloudConfigInvalid(
                f"clouds.{self.name}: the catalog has no image endpoint in this region; set image_endpoint_override."
            )
        base = re.sub(r"/v\d+(\.\d+)?/?$", "", signed.image_url)
        if reference.startswith(("http://", "https://")):
            reference = urlsplit(reference).path.rstrip("/").rpartition("/")[2]
            if not _UUID.fullmatch(reference):
                return ()
        if _UUID.fullmatch(reference):
            answer, _ = await self._connection.read(lambda _: f"{base}/v2/images/{reference.lower()}", missing=".*")
            return () if answer.status == 404 else (parse_image(parse_json(answer.body)),)
        found: list[Image] = []
        url, params = f"{base}/v2/images", [("name", reference), ("limit", "100")]
        for _page in range(100):
            answer, _ = await self._connection.read(lambda _, url=url: url, params)  # type: ignore[misc]
            value = parse_json(answer.body)
            found += [i for i in map(parse_image, parse_objects(value, "images")) if i.name == reference]
            if not value.get("next"):
                break
            # `next` is a path from the service's root, which a gateway may have put elsewhere: only its query counts.
            query = parse_qs(urlsplit(urljoin(url, str(value["next"]))).query)
            params = [(key, v) for key, values in query.items() for v in values]
        return found

    def _servers(self, path: str) -> Callable[[SignedIn], str]:
        def url(signed: SignedIn) -> str:
            project_id = signed.project.project_id
            return f"{compute_root(signed.compute_url, project_id)}/v2.1/{project_id}/servers{path}"

        return url

    # Rebuilding

    async def rebuild(
        self, server_id: str, body: bytes, *, reimage_boot_volume: bool = False, ready: Ready | None = None
    ) -> Answer:
        """See the protocol. `date` is the answer's, else the cloud's time before the call was written."""
        if not _ID.fullmatch(server_id):
            return Answer(effect=Effect.NOT_APPLIED, cause=Cause.NOT_FOUND, message=f"{server_id!r} is not an id.")
        try:
            signed = await self._connection.sign_in()
            url = self._servers(f"/{server_id}/action")(signed)
        except CloudError as e:
            return Answer(effect=Effect.NOT_APPLIED, cause=Cause.NEVER_SENT, message=e.message)
        if reimage_boot_volume and not self.supports_reimage:
            return Answer(
                effect=Effect.NOT_APPLIED,
                cause=Cause.BAD_REQUEST,
                message=f"The cloud can't re-image boot volumes: that needs microversion 2.93, it has "
                f"{self.max_microversion or 'none'}. Nothing was sent.",
            )
        before = signed.cloud_now()
        headers = self._connection.headers(signed, REIMAGE if reimage_boot_volume else None)
        answer = await self._connection.transport.post_once(url, body, headers=headers, ready=ready)
        if isinstance(answer, NoAnswer):
            return Answer(
                effect=Effect.UNKNOWN if answer.may_have_left else Effect.NOT_APPLIED,
                cause=Cause.NO_ANSWER if answer.may_have_left else Cause.NEVER_SENT,
                date=before,
                message=f"{urlsplit(url).netloc}: {answer.why}",
            )
        return classify(
            answer.status,
            answer.headers,
            answer.body,
            server_id=server_id,
            secrets=(signed.token, *secrets_of(body)),
            otherwise=before,
        )

    async def close(self) -> None:
        """See the protocol."""
        await self._connection.close()


async def _parsed(raw: Sequence[Mapping[str, Any]]) -> tuple[Server, ...]:
    """Parses a few at a time: a thousand in one go would hold up the loop for longer than a permit may be late."""
    servers: list[Server] = []
    for i, server in enumerate(raw, start=1):
        servers.append(parse_server(server))
        if i % 50 == 0:
            await asyncio.sleep(0)
    return tuple(servers)


def exactly(name: str) -> str:
    """Nova's name filter, a regular expression of its database, that finds this name.

    `|` becomes any character: Nova escapes it once more on MySQL. The caller compares exactly.
    """
    return "^" + re.sub(r"([.^$*+?{}\[\]\\()])", r"\\\1", name).replace("|", ".") + "$"


def _next_marker(value: Mapping[str, Any], servers: Sequence[Server], page: int) -> str | None:
    """Where the next page starts. Only the link's marker is used: its host can be one that we can't reach."""
    links = value.get("servers_links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, Mapping) and link.get("rel") == "next":
            marker = parse_qs(urlsplit(str(link.get("href") or "")).query).get("marker")
            return marker[0] if marker else (servers[-1].id if servers else None)
    return servers[-1].id if len(servers) >= page else None


def secrets_of(body: bytes) -> tuple[str, ...]:
    """What a rebuild's body holds that no message may repeat: `adminPass`, `user_data`."""
    try:
        rebuild = json.loads(body)["rebuild"]
        values = [rebuild.get(key) for key in ("adminPass", "user_data")]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
    return tuple(v for v in values if isinstance(v, str) and v)
