"""The API as a process, and the Python client against it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestrator.api.serve import config_of, parse_bind
from orchestrator.client import RebuildClient
from orchestrator.errors import SettingsInvalid
from orchestrator.settings import Settings
from tests.api.conftest import Api, plan_file
from tests.parts import eventually

PROGRAM = "from orchestrator.api.serve import serve; from orchestrator.settings import Settings; serve(Settings.read())"


async def test_the_process_serves_until_it_is_told_to_stop(
    database_url: str, redis_url: str, clouds_yaml: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "REBUILD_DATABASE_URL": database_url, "REBUILD_REDIS_URL": redis_url, "REBUILD_BIND": f"127.0.0.1:{port}",
        "REBUILD_LOG_FORMAT": "json",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with aiohttp.ClientSession() as session:

            async def is_up() -> bool:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            up: Callable[[], Awaitable[bool]] = is_up
            reached: bool = await eventually(up, deadline=20)
            assert reached
        process.send_signal(signal.SIGTERM)
        _, stderr = await asyncio.wait_for(process.communicate(), 15)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert b'"event": "serving"' in stderr
    assert database_url.encode() not in stderr


@pytest.mark.parametrize(
    ("bind", "parsed"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), (":80", ("0.0.0.0", 80))],  # noqa: S104
)
def test_an_address_is_host_and_port(bind: str, parsed: tuple[str, int]) -> None:
    assert parse_bind(bind) == parsed


@pytest.mark.parametrize("bind", ["", "x", "x:", "x:-1", "x:99999", "80"])
def test_anything_else_is_no_address(bind: str) -> None:
    with pytest.raises(SettingsInvalid):
        parse_bind(bind)


def test_both_servers_must_be_named() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        config_of(Settings(database_url="", redis_url=""))
    assert [f.path for f in caught.value.errors] == ["REBUILD_DATABASE_URL", "REBUILD_REDIS_URL"]


async def test_the_python_client_understands_the_answers(api: Api, clouds_yaml: Any) -> None:
    async with RebuildClient(api.url, api.tokens["admin"]) as client:
        plan, created = await client.submit_once(plan_file(), idempotency_key="k")
        assert created
        assert (await client.submit_once(plan_file(), idempotency_key="k"))[1] is False
        assert plan.count("pending") == 3
        assert [j.state async for j in client.all_jobs(plan.id)] == ["pending"] * 3
        assert {c.name for c in (await client.clouds()).items} == {"alpha", "beta"}
        token = await client.create_token("t", role="viewer", expires_at=datetime(2099, 1, 1, tzinfo=UTC))
        assert token.token is not None
        assert "t" in {t.name for t in (await client.tokens()).items}
        await client.revoke_token(token.id)
        cancelled = await client.cancel(plan.id, reason="enough")
        assert cancelled.is_final
        types = [e.type async for e in client.follow(plan.id)]
        assert types[0] == "plan.preparing"
        assert types[-1] == "plan.cancelled"
        assert len(types) == 6
        assert await client.is_ready()
