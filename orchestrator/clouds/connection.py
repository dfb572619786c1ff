"""A signed-in connection to one project of a cloud: tokens, microversions, and reads at a bearable pace."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from orchestrator.clouds.answers import error_key, error_message, slow_down_of
from orchestrator.clouds.config import CloudConfig
from orchestrator.clouds.microversions import Microversions, Version, compute_root, headers_for, offered_by
from orchestrator.clouds.pacing import Limiter
from orchestrator.clouds.parse import parse_http_date, parse_json
from orchestrator.clouds.sign_in import SignedIn, TokenCache, boot_clock
from orchestrator.clouds.transport import TOTAL_TIMEOUT, RawAnswer, Transport
from orchestrator.errors import (
    CloudAnswerInvalid,
    CloudError,
    CloudSignInRefused,
    CloudThrottled,
    CloudTokenExpired,
    CloudUnreachable,
)
from orchestrator.log import get_logger

log = get_logger(__name__)

CATALOG_SECONDS = 10.0
"""A catalogue that is older than this is fetched anew where it leads nowhere: services move."""
READ_PATIENCE = 4
"""How often a paced read is sent in all before being told to slow down becomes the caller's trouble."""


class Connection:
    """How a cloud is asked; what it is asked is `OpenStackCloud`'s part.

    `reads`: the limiter that every read waits for; None reads as fast as asked.
    """

    def __init__(self, config: CloudConfig, tokens: TokenCache, reads: Limiter | None) -> None:
        self.transport = Transport(
            verify=config.verify, cert=config.cert, read_timeout=config.api_timeout or TOTAL_TIMEOUT
        )
        self.reads = reads
        self._config = config
        self._tokens = tokens
        self._signed: SignedIn | None = None
        self._microversions: Microversions | None = None
        self._discovered = ""
        """The compute service's address that the microversions are of."""

    async def sign_in(self) -> SignedIn:
        """A token that is good for a while. Finds the compute service's microversions, once at each address of its."""
        signed = await self._token()
        if self._microversions is None or self._discovered != signed.compute_url:
            signed, self._microversions = await self._found(signed)
            self._discovered = signed.compute_url
        return signed

    async def _found(self, signed: SignedIn) -> tuple[SignedIn, Microversions]:
        """The compute service's microversions; looked for where a new catalogue says, if nothing is there by an old
        one: a process keeps its token, and with it the catalogue, for hours."""
        may_have_moved = boot_clock() > signed.signed_at + CATALOG_SECONDS
        try:
            found = await self._discover(signed)
            may_have_moved = may_have_moved and found.offered is None
        except CloudUnreachable:
            if not may_have_moved:
                raise
        if may_have_moved:
            self._signed = signed = await self._tokens.renew(self._config, signed)
            found = await self._discover(signed)
        return signed, found

    async def renew_token(self) -> None:
        """Drops the token that the cloud answered 401 to and fetches a new one."""
        self._signed = await self._tokens.renew(self._config, self._signed)

    @property
    def user_id(self) -> str | None:
        """Who we are to the cloud: its instance actions carry it. Known after `sign_in`."""
        return self._signed.user_id if self._signed else None

    @property
    def microversions(self) -> Microversions:
        """What the cloud offers and what is spoken. Known after `sign_in`."""
        return self._microversions or Microversions(offered=None)

    async def _token(self) -> SignedIn:
        self._signed = await self._tokens.get(self._config)
        return self._signed

    async def _discover(self, signed: SignedIn) -> Microversions:
        """The version document of `/v2.1/`, else of the root; asked without a token, as keystoneauth does."""
        root, cap = compute_root(signed.compute_url, signed.project.project_id), self._config.microversion_cap
        for url, token in ((f"{root}/v2.1/", ""), (f"{root}/", ""), (f"{root}/v2.1/", signed.token)):
            answer = await self.transport.get(url, headers={"X-Auth-Token": token} if token else {})
            if answer.status >= 500 or answer.status == 429:
                raise self._refused(answer, url)
            if answer.status in {200, 300}:
                try:
                    offered = offered_by(parse_json(answer.body))
                except CloudAnswerInvalid:
                    continue
                if offered:
                    return Microversions(offered=offered, cap=cap)
        log.warning("no_microversions", cloud=self._config.name)
        return Microversions(offered=None, cap=cap)

    async def read(
        self,
        url: Callable[[SignedIn], str],
        params: Sequence[tuple[str, str]] = (),
        *,
        missing: str | None = None,
    ) -> tuple[RawAnswer, datetime]:
        """A 200, or a 404 whose error is named `missing`; with the cloud's time. Renews the token once, and
        is patient where told to slow down."""
        renewed, patience = False, READ_PATIENCE if self.reads else 0
        while True:
            signed = await self._token()
            permit = await self.reads.acquire() if self.reads else None
            before = signed.cloud_now()
            address = url(signed)
            answer = await self.transport.get(address, params=params, headers=self.headers(signed, None))
            if answer.status == 200 or (
                answer.status == 404 and missing is not None and re.fullmatch(missing, error_key(answer.body))
            ):
                return answer, parse_http_date(answer.headers.get("Date")) or before
            if answer.status == 401 and not renewed:
                renewed = True
                await self.renew_token()
                continue
            error = self._refused(answer, address)
            if permit and self.reads and isinstance(error, CloudThrottled):
                await self.reads.throttled(error.retry_after, permit.epoch, allowed_rate=error.allowed_rate)
                patience -= 1
                if patience > 0:  # the next permit is for after the pause that was asked for
                    continue
            raise error

    def _refused(self, answer: RawAnswer, url: str) -> CloudError:
        host, said = urlsplit(url).netloc, error_message(answer.body)
        what = f"{host} answered {answer.status}" + (f": {said}" if said else "")
        slow_down = slow_down_of(answer.headers, answer.body)
        told = answer.status == 503 and slow_down.retry_after is not None
        if answer.status == 429 or error_key(answer.body) == "overLimit" or told:
            return CloudThrottled(what, retry_after=slow_down.retry_after, allowed_rate=slow_down.allowed_rate)
        if answer.status == 401:
            return CloudTokenExpired(f"{host} refuses a token that was just fetched.")
        if answer.status == 403:
            return CloudSignInRefused(f"{what} (user {self._config.user!r} may not do that)")
        if answer.status >= 500:
            return CloudUnreachable(what)
        return CloudAnswerInvalid(what)

    def headers(self, signed: SignedIn, version: Version | None) -> Mapping[str, str]:
        """With the token, at the version given, else at the one that is spoken."""
        return {"X-Auth-Token": signed.token, **headers_for(version or self.microversions.spoken)}

    async def close(self) -> None:
        """Closes the connections."""
        await self.transport.close()
