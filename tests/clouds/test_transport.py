"""The rebuild call is written at most once, and whether a byte left is known: proved against a server below HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.clouds import transport as module
from orchestrator.clouds.transport import NoAnswer, RawAnswer, Transport
from orchestrator.errors import CloudAnswerInvalid, CloudConfigInvalid, CloudUnreachable
from tests.clouds.raw import Connection, raw_server
from tests.parts import eventually

BODY = b'{"rebuild": {"imageRef": "3ed456f5-3d8f-4383-a6c9-312032afcd1a"}}'
HEADERS = {"X-Auth-Token": "t"}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def client(post_timeout: float = 5.0, connect_timeout: float = 2.0) -> AsyncIterator[Transport]:
    async with Transport(read_timeout=5.0, post_timeout=post_timeout, connect_timeout=connect_timeout) as made:
        yield made


async def ok(connection: Connection) -> None:
    while await connection.request():
        await connection.answer("202 Accepted")


async def test_an_answer_comes_back_whole() -> None:
    async with raw_server(ok) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, RawAnswer)
        assert (answer.status, answer.body, answer.whole) == (202, b"{}", True)
        assert server.connections[0].received.endswith(BODY)
        assert b"Content-Type: application/json" in server.connections[0].received


async def test_a_server_that_reads_and_closes_gets_the_call_once() -> None:
    async def drop(connection: Connection) -> None:
        await connection.request()

    async with raw_server(drop) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert answer.may_have_left
        assert (server.requests(), len(server.connections)) == (1, 1)


async def test_a_kept_connection_that_closes_on_the_second_call_gets_no_second_write() -> None:
    """aiohttp sends idempotent requests anew in this case; a POST must not be."""

    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.answer("202 Accepted")
        await connection.request()

    async with raw_server(once) as server, client() as http:
        first = await http.post_once(server.url, BODY, headers=HEADERS)
        second = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(first, RawAnswer)
        assert isinstance(second, NoAnswer)
        assert second.may_have_left
        assert (server.requests(), len(server.connections)) == (2, 1)


async def test_a_read_is_sent_anew_where_a_kept_connection_was_closed() -> None:
    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.answer("200 OK")
        await connection.request()

    async with raw_server(once) as server, client() as http:
        await http.get(server.url, headers=HEADERS)
        assert (await http.get(server.url, headers=HEADERS)).status == 200
        assert len(server.connections) == 2


async def test_a_connection_idle_for_longer_than_a_second_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", 0.05)
    async with raw_server(ok) as server, client() as http:
        await http.post_once(server.url, BODY, headers=HEADERS)
        await asyncio.sleep(0.1)  # the idle time itself is the condition
        await http.post_once(server.url, BODY, headers=HEADERS)
        assert len(server.connections) == 2


async def test_a_connection_just_used_is_used_again() -> None:
    async with raw_server(ok) as server, client() as http:
        for _ in range(5):
            await http.post_once(server.url, BODY, headers=HEADERS)
        assert (server.requests(), len(server.connections)) == (5, 1)


async def test_a_reset_after_the_write_may_have_been_heard() -> None:
    async def reset(connection: Connection) -> None:
        await connection.request()
        connection.reset()

    async with raw_server(reset) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert answer.may_have_left
        assert server.requests() == 1


async def test_no_answer_in_time_may_have_been_heard() -> None:
    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.request()

    async with raw_server(silent) as server, client(post_timeout=0.3) as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert answer.may_have_left
        assert "time" in answer.why
        assert server.requests() == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_an_answer_and_not_followed(status: str) -> None:
    async def redirect(connection: Connection) -> None:
        while await connection.request():
            await connection.answer(status, headers="Location: /elsewhere\r\n")

    async with raw_server(redirect) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, RawAnswer)
        assert answer.status == int(status[:3])
        assert (await http.get(server.url, headers=HEADERS)).status == int(status[:3])
        assert server.requests() == 2


@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
async def test_where_the_last_look_says_no_not_a_byte_leaves(kept: bool) -> None:
    async with raw_server(ok) as server, client() as http:
        if kept:
            await http.post_once(server.url, BODY, headers=HEADERS)
        before = server.bytes_received
        asked: list[int] = []

        def ready() -> bool:
            asked.append(len(server.connections))
            return False

        answer = await http.post_once(server.url, BODY, headers=HEADERS, ready=ready)
        assert isinstance(answer, NoAnswer)
        assert not answer.may_have_left
        assert len(asked) == 1
        await http.close()
        await eventually(lambda: server.connections and all(c.ended for c in server.connections))
        assert server.bytes_received == before


async def test_the_last_look_comes_after_the_connection_and_runs_into_the_write() -> None:
    """From the look to the transport's write nothing else of the loop runs."""
    steps: list[str] = []

    async with raw_server(ok) as server, client() as http:
        loop = asyncio.get_running_loop()

        def ready() -> bool:
            steps.append("look")
            loop.call_soon(steps.append, "loop")
            return True

        original = asyncio.selector_events._SelectorSocketTransport.write  # type: ignore[attr-defined]

        def write(self: object, data: bytes) -> None:
            if data.startswith(b"POST"):
                steps.append("write")
                assert data.endswith(BODY)
            original(self, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio.selector_events._SelectorSocketTransport, "write", write)  # type: ignore[attr-defined]
            await http.post_once(server.url, BODY, headers=HEADERS, ready=ready)
        assert steps == ["look", "write", "loop"]


async def test_a_last_look_that_raises_sends_nothing() -> None:
    def broken() -> bool:
        raise RuntimeError("lease unreadable")

    async with raw_server(ok) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS, ready=broken)
        assert isinstance(answer, NoAnswer)
        assert not answer.may_have_left
        assert server.bytes_received == 0


async def test_a_refused_connection_sends_nothing() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        async with client() as http:
            answer = await http.post_once(url, BODY, headers=HEADERS)
            assert isinstance(answer, NoAnswer)
            assert not answer.may_have_left
            assert "refused" in answer.why
            with pytest.raises(CloudUnreachable, match="refused"):
                await http.get(url, headers=HEADERS)


async def test_a_name_that_cant_be_resolved_sends_nothing() -> None:
    async with client() as http:
        answer = await http.post_once("http://cloud.invalid/", BODY, headers=HEADERS)
    assert isinstance(answer, NoAnswer)
    assert not answer.may_have_left


async def test_a_server_that_speaks_no_tls_gets_no_request() -> None:
    async def close(connection: Connection) -> None:
        await connection.reader.read(1)

    async with raw_server(close) as server, client() as http:
        answer = await http.post_once(server.url.replace("http", "https"), BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert not answer.may_have_left
        assert server.requests() == 0


async def test_a_tls_handshake_that_hangs_sends_nothing() -> None:
    async def hang(connection: Connection) -> None:
        while await connection.reader.read(100):
            pass

    async with raw_server(hang) as server, client(connect_timeout=0.3) as http:
        answer = await http.post_once(server.url.replace("http", "https"), BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert not answer.may_have_left


async def test_waiting_for_a_free_connection_in_vain_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 1)

    async def silent(connection: Connection) -> None:
        await connection.request()
        await connection.request()

    async with raw_server(silent) as server, client(post_timeout=1.5, connect_timeout=0.3) as http:
        first = asyncio.create_task(http.post_once(server.url, BODY, headers=HEADERS))
        await eventually(lambda: server.requests() == 1, message="the first call's arrival")
        second = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(second, NoAnswer)
        assert not second.may_have_left
        heard = await first
        assert isinstance(heard, NoAnswer)
        assert heard.may_have_left
        assert server.requests() == 1


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_who_is_cancelled_sends_nothing_unless_it_was_ready(steps: int) -> None:
    """Whichever step of the loop the cancellation falls on."""
    asked: list[bool] = []

    def ready() -> bool:
        asked.append(True)
        return True

    async with raw_server(ok) as server, client() as http:
        call = asyncio.create_task(http.post_once(server.url, BODY, headers=HEADERS, ready=ready))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_ready = bool(asked)
        call.cancel()
        await asyncio.wait([call])
        await http.close()
        await eventually(lambda: all(c.ended for c in server.connections))
        assert bool(asked) == was_ready
        assert was_ready or server.bytes_received == 0


async def test_many_calls_at_once_each_arrive_once() -> None:
    async with raw_server(ok) as server, client() as http:
        answers = await asyncio.gather(
            *(http.post_once(f"{server.url}/{i}", BODY, headers=HEADERS) for i in range(200))
        )
        assert all(isinstance(a, RawAnswer) for a in answers)
        assert server.requests() == 200


async def test_an_answer_beyond_the_limit_is_cut() -> None:
    async def huge(connection: Connection) -> None:
        await connection.request()
        await connection.answer("202 Accepted", b"x" * (2 << 20))

    async with raw_server(huge) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, RawAnswer)
        assert (answer.status, len(answer.body), answer.whole) == (202, 1 << 20, False)


async def test_an_answer_that_breaks_off_keeps_its_status() -> None:
    async def cut(connection: Connection) -> None:
        await connection.request()
        head = b"HTTP/1.1 500 Oops\r\nx-openstack-request-id: req-1\r\nContent-Length: 100\r\n\r\n{"
        connection.writer.write(head)
        await connection.writer.drain()

    async with raw_server(cut) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, RawAnswer)
        assert (answer.status, answer.headers["X-OpenStack-Request-ID"], answer.whole) == (500, "req-1", False)


async def test_an_answer_that_is_not_http_may_mean_anything() -> None:
    async def noise(connection: Connection) -> None:
        await connection.request()
        connection.writer.write(b"\x00\x01 nonsense\r\n\r\n")
        await connection.writer.drain()

    async with raw_server(noise) as server, client() as http:
        answer = await http.post_once(server.url, BODY, headers=HEADERS)
        assert isinstance(answer, NoAnswer)
        assert answer.may_have_left


async def test_a_read_beyond_the_limit_or_cut_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIST_ANSWER_LIMIT", 1 << 20)

    async def huge(connection: Connection) -> None:
        await connection.request()
        await connection.answer("200 OK", b"x" * (2 << 20))

    async def cut(connection: Connection) -> None:
        await connection.request()
        connection.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await connection.writer.drain()

    for script in (huge, cut):
        async with raw_server(script) as server, client() as http:
            with pytest.raises(CloudAnswerInvalid):
                await http.get(server.url, headers=HEADERS)


async def test_no_cookies_are_kept() -> None:
    async def cookie(connection: Connection) -> None:
        while await connection.request():
            await connection.answer("200 OK", headers="Set-Cookie: a=b\r\n")

    async with raw_server(cookie) as server, client() as http:
        for _ in range(2):
            await http.get(server.url, headers=HEADERS)
        assert b"Cookie:" not in server.connections[0].received


async def test_the_proxy_of_the_environment_is_used_and_no_proxy_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_server(ok) as proxy, raw_server(ok) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        async with client() as http:
            await http.post_once("http://cloud.invalid/v2.1", BODY, headers=HEADERS)
        assert proxy.connections[0].received.startswith(b"POST http://cloud.invalid/v2.1 HTTP/1.1")
        monkeypatch.setenv("no_proxy", "127.0.0.0/8")
        async with client() as http:
            await http.post_once(server.url, BODY, headers=HEADERS)
        assert (server.requests(), proxy.requests()) == (1, 1)


async def test_passwords_of_netrc_are_not_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w") as file:  # noqa: ASYNC230, PTH123
        file.write("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", netrc)
    async with raw_server(ok) as server, client() as http:
        await http.get(server.url, headers=HEADERS)
        assert b"Authorization" not in server.connections[0].received


def test_a_missing_certificate_file_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(CloudConfigInvalid, match="cacert"):
        module.tls_context("/nowhere/ca.pem", None)
