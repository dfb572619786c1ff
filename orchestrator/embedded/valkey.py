"""Valkey from the wheel, on a loopback port behind a password, with an append-only file.

TCP because `redis://:password@127.0.0.1:port/0` is the one form that redis-py and Celery's kombu both read.
"""

import asyncio
import os

from redis import asyncio as redis
from redis.exceptions import AuthenticationError, RedisError

from orchestrator.embedded.child import ChildSpec, Prepared
from orchestrator.embedded.errors import EmbeddedFailed
from orchestrator.embedded.processes import Supervisor
from orchestrator.embedded.state import (
    await_orphan,
    give_file,
    give_folder,
    remembered,
    server_home,
    server_user,
)
from orchestrator.embedded.wheels import valkey_program


async def prepare_valkey(supervisor: Supervisor, *, durable: bool, restart: bool) -> Prepared:
    """Writes the configuration, and says how to run Valkey and at which URL it will be.

    Raises `EmbeddedMissing` without the wheel.
    """
    user = server_user(supervisor.state_dir)
    home = server_home(supervisor.state_dir, user)
    program = await asyncio.to_thread(valkey_program, home, user)
    address = remembered(home, "valkey")
    data = give_folder(home / "valkey", user)
    pid_file = data / "valkey.pid"
    await asyncio.to_thread(await_orphan, pid_file, program.name)
    settings = {
        "bind": "127.0.0.1",
        "port": str(address.port),
        "requirepass": address.password,
        "dir": f'"{data}"',
        "pidfile": f'"{pid_file}"',
        "daemonize": "no",
        "databases": "64",
        "save": '""',
        "appendonly": "yes",  # the wheel's default is no
        "appendfsync": "everysec" if durable else "no",
        "maxmemory-policy": "noeviction",
        "timeout": "0",
        "tcp-keepalive": "60",
    }
    # In a file, not in the argument list: that is open to every user of the machine.
    config = give_file(data / "valkey.conf", "".join(f"{k} {v}\n" for k, v in settings.items()), user)
    url = f"redis://:{address.password}@127.0.0.1:{address.port}/0"

    async def ready() -> bool:
        return await _answers(url)

    spec = ChildSpec(
        name="valkey",
        argv=[program, config],
        env={"PATH": os.defpath, "HOME": str(data), "LC_ALL": "C", "TZ": "UTC"},
        cwd=data,
        user=user,
        grace_seconds=20.0,
        ready=ready,
        ready_seconds=120.0,  # it reads the append-only file first
        restart=restart,
    )
    return Prepared(spec=spec, url=url, port=address.port)


async def _answers(url: str) -> bool:
    """Whether it answers and has read its data (it says LOADING before)."""
    client = redis.Redis.from_url(url, socket_connect_timeout=4, socket_timeout=4)
    try:
        return bool(await client.ping())
    except AuthenticationError:
        raise EmbeddedFailed("the server on Valkey's remembered port does not take our password") from None
    except (OSError, RedisError):
        return False
    finally:
        await client.aclose()
