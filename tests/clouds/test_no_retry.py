"""No layer sends the rebuild call twice: the whole client against a server below HTTP that counts every byte; and the
sign-in's libraries, which could send a POST anew, never carry it."""

import ast
import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
import requests.adapters
from keystoneauth1 import session as ks_session

from orchestrator.clouds.config import CloudConfig, load_cloud
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.protocol import Answer, Cause, Effect, Project
from orchestrator.clouds.sign_in import SignedIn, TokenCache, boot_clock, sign_in_blocking
from orchestrator.clouds.transport import Transport
from orchestrator.errors import CloudError
from tests.clouds.raw import Connection, RawServer, raw_server
from tests.parts import eventually

SID = "80eaeaa4-5441-4574-9e7c-363513d1c508"
BODY = b'{"rebuild": {"imageRef": "3ed456f5-3d8f-4383-a6c9-312032afcd1a"}}'
ACCEPTED = json.dumps({"server": {"id": SID, "status": "REBUILD"}}).encode()
VERSION = json.dumps({"version": {"id": "v2.1", "version": "2.93", "min_version": "2.1"}}).encode()
OVER_LIMIT = b'{"overLimit": {"code": 503, "message": "slow", "retryAfter": "0"}}'

Ending = Callable[[Connection], Awaitable[None]]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], CloudConfig]:
    """The configuration of a cloud at that address."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    monkeypatch.delenv("OS_CLOUD", raising=False)

    def config(url: str) -> CloudConfig:
        auth = {"auth_url": f"{url}/v3", "username": "u", "password": "hunter2", "project_name": "p",
                "user_domain_name": "Default", "project_domain_name": "Default"}  # fmt: skip
        entry = {"auth_type": "v3password", "auth": auth, "region_name": "r", "api_timeout": 2.0}
        path.write_text(json.dumps({"clouds": {"raw": entry}}))
        return load_cloud("raw")

    return config


def signed_in(url: str) -> SignedIn:
    return SignedIn(
        token="t",
        project=Project(deployment="k", region="r", project_id="p"),
        user_id="u",
        compute_url=f"{url}/v2.1",
        image_url=None,
        signed_at=boot_clock(),
        issued_at=datetime(2026, 11, 23, 10, tzinfo=UTC),
        lifetime=3600.0,
    )


@asynccontextmanager
async def client(
    server: RawServer, config: CloudConfig, post_timeout: float = 20.0
) -> AsyncIterator[tuple[OpenStackCloud, list[str]]]:
    """The cloud at the server, and the sign-ins asked for."""
    asked: list[str] = []

    def sign_in(given: CloudConfig) -> SignedIn:
        asked.append(given.name)
        return signed_in(server.url)

    cloud = OpenStackCloud(config, TokenCache(sign_in))
    await cloud._connection.transport.close()
    cloud._connection.transport = Transport(post_timeout=post_timeout)
    try:
        yield cloud, asked
    finally:
        await cloud.close()


def ends_with(ending: Ending, *, after: int) -> Callable[[Connection], Awaitable[None]]:
    """Answers GETs, accepts `after` rebuild calls, and ends the next one so. What comes afterwards is accepted: a
    second try would succeed, and be seen."""
    posts = 0

    async def script(connection: Connection) -> None:
        nonlocal posts
        while request := await connection.request():
            if not request.startswith(b"POST"):
                await connection.answer("200 OK", VERSION)
                continue
            posts += 1
            if posts != after + 1:
                await connection.answer("202 Accepted", ACCEPTED)
                continue
            await ending(connection)
            if connection.writer.transport.is_closing():
                return

    return script


async def close(connection: Connection) -> None:
    connection.writer.close()


async def reset(connection: Connection) -> None:
    connection.reset()


async def silence(connection: Connection) -> None:
    await connection.reader.read(1)  # until the client has had enough
    connection.writer.close()


async def part_of_a_head(connection: Connection) -> None:
    connection.writer.write(b"HTTP/1.1 202 Acc")
    await connection.writer.drain()
    connection.writer.close()


async def continue_only(connection: Connection) -> None:
    connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await connection.writer.drain()
    connection.writer.close()


async def part_of_a_body(connection: Connection) -> None:
    connection.writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 500\r\n\r\n" + ACCEPTED[:40])
    await connection.writer.drain()
    connection.writer.close()


async def part_of_a_chunk(connection: Connection) -> None:
    connection.writer.write(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + ACCEPTED[:40])
    await connection.writer.drain()
    connection.writer.close()


def answering(status: str, body: bytes = b"{}", headers: str = "") -> Ending:
    async def answer(connection: Connection) -> None:
        await connection.answer(status, body, headers)

    return answer


NO, OPEN = Effect.NOT_APPLIED, Effect.UNKNOWN
ENDINGS: dict[str, tuple[Ending, Effect, Cause]] = {
    "closed": (close, OPEN, Cause.NO_ANSWER),
    "reset": (reset, OPEN, Cause.NO_ANSWER),
    "no answer in time": (silence, OPEN, Cause.NO_ANSWER),
    "closed within the head": (part_of_a_head, OPEN, Cause.NO_ANSWER),
    "closed after 100 Continue": (continue_only, OPEN, Cause.NO_ANSWER),
    "closed within the body of a 202": (part_of_a_body, OPEN, Cause.UNREADABLE),
    "closed within a chunk of a 202": (part_of_a_chunk, OPEN, Cause.UNREADABLE),
    "a 202 beyond the limit": (answering("202 Accepted", b"x" * (2 << 20)), OPEN, Cause.UNREADABLE),
    "a 202 of HTML": (answering("202 Accepted", b"<html>Hello</html>"), OPEN, Cause.UNREADABLE),
    "a 202 of nothing": (answering("202 Accepted", b""), OPEN, Cause.UNREADABLE),
    "a 202 about another server": (
        answering("202 Accepted", ACCEPTED.replace(b"80ea", b"90ea")),
        OPEN,
        Cause.UNREADABLE,
    ),
    "200": (answering("200 OK", ACCEPTED), OPEN, Cause.UNREADABLE),
    "204": (answering("204 No Content", b""), OPEN, Cause.UNREADABLE),
    "307": (answering("307 Temporary Redirect", b"", "Location: /v2.1/again\r\n"), OPEN, Cause.UNREADABLE),
    "308": (answering("308 Permanent Redirect", b"", "Location: /v2.1/again\r\n"), OPEN, Cause.UNREADABLE),
    "401": (answering("401 Unauthorized", b"{}", "WWW-Authenticate: Keystone uri=x\r\n"), NO, Cause.TOKEN),
    "401 asking for a digest": (
        answering("401 Unauthorized", b"", 'WWW-Authenticate: Digest realm="x", nonce="y", qop="auth"\r\n'),
        NO,
        Cause.TOKEN,
    ),
    "408": (answering("408 Request Timeout", b"", "Connection: close\r\n"), OPEN, Cause.UNREADABLE),
    "421": (answering("421 Misdirected Request", b""), OPEN, Cause.UNREADABLE),
    "425": (answering("425 Too Early", b"", "Retry-After: 0\r\n"), OPEN, Cause.UNREADABLE),
    "429 at once again": (answering("429 Too Many Requests", b"", "Retry-After: 0\r\n"), NO, Cause.THROTTLED),
    "502": (answering("502 Bad Gateway", b""), OPEN, Cause.SERVER_ERROR),
    "503 at once again": (answering("503 Service Unavailable", b"", "Retry-After: 0\r\n"), OPEN, Cause.SERVER_ERROR),
    "503 over a limit": (
        answering("503 Service Unavailable", OVER_LIMIT, "Retry-After: 0\r\n"),
        NO,
        Cause.THROTTLED,
    ),
}


def posts_of(server: RawServer) -> list[bytes]:
    """Every POST that arrived, from its method to whatever followed it on its connection."""
    return [b"POST" + part for c in server.connections for part in bytes(c.received).split(b"POST")[1:]]


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("name", ENDINGS)
async def test_however_a_rebuild_call_ends_it_arrives_once(
    name: str, kept: bool, config: Callable[[str], CloudConfig]
) -> None:
    ending, effect, cause = ENDINGS[name]
    async with (
        raw_server(ends_with(ending, after=int(kept))) as server,
        client(server, config(server.url), 0.5 if ending is silence else 20.0) as (cloud, sign_ins),
    ):
        looks: list[bool] = []

        def ready() -> bool:
            looks.append(True)
            return True

        if kept:
            assert (await cloud.rebuild(SID, BODY)).effect is Effect.APPLIED
        answer: Answer = await cloud.rebuild(SID, BODY, ready=ready)
        assert (answer.effect, answer.cause) == (effect, cause), answer.message
        # A second try would come from a callback or after a pause: give it both.
        await asyncio.sleep(0.05)
        await cloud.close()
        await eventually(lambda: all(c.ended for c in server.connections))
        posts = posts_of(server)
        assert len(posts) == 1 + kept
        assert all(post.startswith(f"POST /v2.1/p/servers/{SID}/action ".encode()) for post in posts)
        assert all(post.endswith(BODY) and post.count(BODY) == 1 for post in posts)
        carrying = [c for c in server.connections if b"POST" in c.received]
        assert len(carrying) == 1, "a kept connection was used, and no other opened for the call"
        assert (looks, sign_ins) == ([True], ["raw"])


async def test_a_call_that_fails_leaves_the_next_one_to_itself(config: Callable[[str], CloudConfig]) -> None:
    """Nothing of a broken call is kept back to go out with the next."""
    async with (
        raw_server(ends_with(reset, after=1)) as server,
        client(server, config(server.url)) as (cloud, _),
    ):
        answers = [await cloud.rebuild(SID, BODY) for _ in range(4)]
        assert [a.effect for a in answers] == [Effect.APPLIED, Effect.UNKNOWN, Effect.APPLIED, Effect.APPLIED]
        await cloud.close()
        await eventually(lambda: all(c.ended for c in server.connections))
        assert len(posts_of(server)) == 4


async def test_a_tls_connection_that_closes_after_the_call_gets_it_once(
    config: Callable[[str], CloudConfig], tmp_path: Path
) -> None:
    """The bytes are counted behind the encryption."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
            "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    try:
        subprocess.run(made, check=True, capture_output=True)  # noqa: ASYNC221  before anything runs
    except FileNotFoundError:
        pytest.skip("no openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"}}"))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Transport(verify=False, post_timeout=5.0) as http:
        answer = await http.post_once(url, BODY, headers={})
        await asyncio.sleep(0.05)  # a second try would come by now
    server.close()
    assert answer == type(answer)(may_have_left=True, why=answer.why)  # type: ignore[call-arg, union-attr]
    assert len(received) == 1
    assert received[0].endswith(BODY)


# The libraries of the sign-in


async def test_no_session_of_keystoneauth_or_requests_carries_a_compute_call(
    config: Callable[[str], CloudConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a blocking session was used for the compute service")

    monkeypatch.setattr(requests.Session, "send", never)
    monkeypatch.setattr(ks_session.Session, "request", never)
    async with (
        raw_server(ends_with(answering("202 Accepted", ACCEPTED), after=0)) as server,
        client(server, config(server.url)) as (cloud, _),
    ):
        assert (await cloud.rebuild(SID, BODY)).effect is Effect.APPLIED
        assert len(posts_of(server)) == 1


def test_only_the_sign_in_and_the_configuration_know_the_blocking_libraries() -> None:
    """And of `requests` the transport takes the rules about proxies, nothing else."""
    root = Path(__file__).parents[2]
    users: dict[str, set[str]] = {}
    for folder in ("orchestrator", "workers"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for name in names:
                    if name.split(".")[0] in {"requests", "urllib3", "httpx", "keystoneauth1", "openstack"}:
                        users.setdefault(path.relative_to(root).as_posix(), set()).add(name)
    assert users.pop("orchestrator/clouds/transport.py") == {"requests.utils"}
    users.pop("orchestrator/clouds/sign_in.py")
    config_reads = users.pop("orchestrator/clouds/config.py", set())
    assert not {name for name in config_reads if name.startswith(("requests", "urllib3", "keystoneauth1.session"))}
    assert users == {}


@pytest.mark.parametrize(
    "name", ["closed", "reset", "no answer in time", "503 at once again", "429 at once again", "401"]
)
async def test_a_sign_in_is_sent_once_too(name: str, config: Callable[[str], CloudConfig]) -> None:
    """No retries, neither keystoneauth's (connect, status code, stale token) nor those below it."""
    async with raw_server(ends_with(ENDINGS[name][0], after=0)) as server:
        loaded = config(server.url)
        with pytest.raises(CloudError):
            await asyncio.to_thread(sign_in_blocking, loaded)
        await eventually(lambda: all(c.ended for c in server.connections))
        assert len(posts_of(server)) == 1
        assert posts_of(server)[0].startswith(b"POST /v3/auth/tokens ")


async def test_the_sign_ins_session_has_no_retries(
    config: Callable[[str], CloudConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, Any]] = []
    send = requests.adapters.HTTPAdapter.send
    request = ks_session.Session._send_request

    def noted(self: ks_session.Session, *args: Any, **given: Any) -> Any:
        # url, method, redirect, log, logger, split_loggers, connect_retries, status_code_retries, …
        seen.append((args[6], args[7], None))
        return request(self, *args, **given)

    def noted_below(self: requests.adapters.HTTPAdapter, *args: Any, **given: Any) -> Any:
        retries = self.max_retries
        seen.append((retries.total or 0, 0, retries.read))
        return send(self, *args, **given)

    monkeypatch.setattr(ks_session.Session, "_send_request", noted)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", noted_below)
    async with raw_server(ends_with(close, after=0)) as server:
        loaded = config(server.url)
        with pytest.raises(CloudError):
            await asyncio.to_thread(sign_in_blocking, loaded)
    assert seen == [(0, 0, None), (0, 0, False)]
