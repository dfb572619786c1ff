"""Everything on one machine: servers, migrations, a first token, the API, workers and beat, all supervised."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from orchestrator.cli.context import ENV_FILE, read_env_file
from orchestrator.cli.processes import WARM_SECONDS
from orchestrator.client import RebuildClient
from orchestrator.embedded import ChildSpec, EmbeddedFailed, Supervisor, start_postgres, start_valkey
from orchestrator.embedded.state import free_port, port_is_free
from orchestrator.errors import Conflict, SettingsInvalid, Unauthenticated
from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.migrate import upgrade
from orchestrator.service.roles import Role
from orchestrator.service.tokens import TokenChecker, create_token

FIRST_NAME = "up"
"""The name of the token that `up` makes; a number follows where it was given before."""


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What is to run, and where."""

    state_dir: Path
    bind: str
    """`host:port`; port 0 takes a free one."""
    workers: int = 1
    database_url: str = field(default="", repr=False)
    """Of a server that runs already; empty starts an embedded one."""
    redis_url: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    """The environment of all children, before the addresses are put in."""
    durable: bool = True
    """False gives up safety against a crash of the machine: for demos."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What runs."""

    state_dir: Path
    api_url: str
    token: str = field(repr=False)
    supervisor: Supervisor

    @property
    def env_file(self) -> Path:
        return self.state_dir / ENV_FILE

    @property
    def logs(self) -> Path:
        return self.state_dir / "log"


@asynccontextmanager
async def running(
    options: SiteOptions, *, say: Callable[[str], None], before: Sequence[ChildSpec] = ()
) -> AsyncIterator[Site]:
    """Starts everything, `before` ahead of it, and stops it in the reverse order at the end of the block.

    Raises `StateFolderBusy` where another one runs in the folder, `EmbeddedFailed` where something does not start.
    """
    async with Supervisor(options.state_dir) as supervisor:
        state_dir = options.state_dir.resolve()
        known = read_env_file(state_dir / ENV_FILE)
        database_url, redis_url = _own_servers(options, known)
        for spec in before:
            await supervisor.start(spec)
        if not database_url:
            say("Starting PostgreSQL …")
            database_url = await start_postgres(supervisor, durable=options.durable)
        if not redis_url:
            say("Starting Valkey …")
            redis_url = await start_valkey(supervisor, durable=options.durable)
        say("Migrating the database …")
        await upgrade(database_url)
        token = await _admin_token(database_url, known.get("REBUILD_TOKEN", ""))
        bind, api_url = _address(options.bind)
        values = {
            "REBUILD_DATABASE_URL": database_url,
            "REBUILD_REDIS_URL": redis_url,
            "REBUILD_API_URL": api_url,
            "REBUILD_TOKEN": token,
        }
        _write_env(state_dir / ENV_FILE, values)
        env = {
            **options.env, **values,
            "REBUILD_BIND": bind, "REBUILD_STATE_DIR": str(state_dir), "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        say("Starting the API, the workers and beat …")
        await supervisor.start(_api(env, api_url))
        for number in range(1, options.workers + 1):
            await supervisor.start(
                _command(f"worker-{number}", "worker", env, group="workers", grace_seconds=WARM_SECONDS + 10)
            )
        await supervisor.start(_command("beat", "beat", env))
        yield Site(state_dir=state_dir, api_url=api_url, token=token, supervisor=supervisor)


def _command(
    name: str, command: str, env: Mapping[str, str], *, group: str = "", grace_seconds: float = 15.0
) -> ChildSpec:
    argv = [sys.executable, "-m", "orchestrator.cli", command]
    return ChildSpec(name=name, argv=argv, env=env, group=group, grace_seconds=grace_seconds)


def _api(env: Mapping[str, str], api_url: str) -> ChildSpec:
    async def ready() -> bool:
        async with RebuildClient(api_url, "", patience=0, timeout=2) as client:
            return await client.is_ready()

    argv = [sys.executable, "-m", "orchestrator.cli", "serve"]
    return ChildSpec(name="api", argv=argv, env=env, grace_seconds=15.0, ready=ready)


def _own_servers(options: SiteOptions, known: Mapping[str, str]) -> tuple[str, str]:
    """The URLs of servers that the environment names; empty for those to be started here.

    A shell that has read our own `env` file names the embedded servers, which are ours to start.
    """
    database_url, redis_url = options.database_url, options.redis_url
    servers = options.state_dir / "servers"
    if database_url == known.get("REBUILD_DATABASE_URL") and (servers / "postgres.json").exists():
        database_url = ""
    if redis_url == known.get("REBUILD_REDIS_URL") and (servers / "valkey.json").exists():
        redis_url = ""
    return database_url, redis_url


def _address(bind: str) -> tuple[str, str]:
    """Where to listen and how it is reached from here. Raises `SettingsInvalid`, `EmbeddedFailed` for a taken port."""
    host, _, port_text = bind.rpartition(":")
    if not port_text.isdigit() or int(port_text) > 65535:
        raise SettingsInvalid(f"REBUILD_BIND must be host:port, not {bind!r}")
    port = int(port_text) or free_port()
    if not port_is_free(port):
        raise EmbeddedFailed(f"port {port} is taken by another process; choose another with --port, 0 for any")
    reached = "127.0.0.1" if host in ("", "0.0.0.0", "[::]", "::") else host  # noqa: S104  compared, not bound
    return f"{host}:{port}", f"http://{reached}:{port}"


async def _admin_token(database_url: str, known: str) -> str:
    """The token of last time if it still is an admin's; else a new one."""
    async with open_engine(database_url, name="rebuildctl-up", pool_size=1) as engine:
        if known:
            try:
                if (await TokenChecker(engine).by_secret(known)).role is Role.ADMIN:
                    return known
            except Unauthenticated:
                pass
        name = FIRST_NAME
        while True:
            try:
                _, secret = await create_token(engine, name, Role.ADMIN, created_by="rebuildctl up")
            except Conflict:
                name = f"{FIRST_NAME}-{uuid4().hex[:6]}"
            else:
                return secret


def _write_env(path: Path, values: Mapping[str, str]) -> None:
    """`KEY=value` lines that only the owner can read, at every moment."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.writelines(f"{key}={value}\n" for key, value in values.items())
    fresh.replace(path)
