"""PostgreSQL from the wheel: made once by initdb, then run on a loopback port behind SCRAM.

TCP rather than a socket file: one URL serves asyncpg and every child, whoever they run as and however deep the state
folder lies (a socket's path ends at 107 bytes). SCRAM proves both sides, so a foreign process on the port learns
nothing. The password has 256 random bits, which needs no slow hash: 4,096 iterations would cost every new connection
milliseconds and guard nothing.
"""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import asyncpg

from orchestrator.embedded.child import ChildSpec, Prepared
from orchestrator.embedded.errors import EmbeddedFailed
from orchestrator.embedded.processes import Supervisor
from orchestrator.embedded.state import (
    ServerUser,
    await_orphan,
    give_file,
    give_folder,
    remembered,
    server_home,
    server_user,
)
from orchestrator.embedded.wheels import PostgresPrograms, postgres_programs

ROLE = DATABASE = "rebuild"

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "scram_iterations": "64",
    "cluster_name": "rebuild",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
    "logging_collector": "off",
    "jit": "off",
}
DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum_naptime": "10min"}
"""For tests alone: a crash of the machine (not of the process) would lose the data."""


async def prepare_postgres(supervisor: Supervisor, *, durable: bool, restart: bool) -> Prepared:
    """Makes the data folder where there is none, and says how to run PostgreSQL and at which URL it will be.

    Raises `EmbeddedMissing` without the wheel, `EmbeddedFailed` when initdb fails or the data is another version's.
    """
    user = server_user(supervisor.state_dir)
    home = server_home(supervisor.state_dir, user)
    data = home / "postgres"
    major = _written_by(data)
    programs = await asyncio.to_thread(postgres_programs, home, user, major=major)
    address = remembered(home, "postgres")
    if major is None:
        await _make(supervisor, programs, data, user, address.password, durable=durable)
    give_folder(data, user)
    await asyncio.to_thread(await_orphan, data / "postmaster.pid", "postgres")
    settings = SETTINGS | (DURABLE if durable else FAST) | {"port": str(address.port)}
    url = f"postgresql://{ROLE}:{address.password}@127.0.0.1:{address.port}/{DATABASE}"

    async def ready() -> bool:
        return await _answers(url)

    spec = ChildSpec(
        name="postgres",
        argv=[programs.postgres, "-D", data, *(word for k, v in settings.items() for word in ("-c", f"{k}={v}"))],
        env=_environment(home),
        cwd=data,
        user=user,
        stop_signal=signal.SIGINT,  # fast shutdown: ends sessions, writes a checkpoint
        grace_seconds=30.0,
        ready=ready,
        ready_seconds=180.0,  # crash recovery replays the log since the last checkpoint
        restart=restart,
    )
    return Prepared(spec=spec, url=url, port=address.port)


def _written_by(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise EmbeddedFailed(f"{data / 'PG_VERSION'} can't be read: {e}") from e


def _environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's: a PGDATA, PGPORT or LC_ALL of theirs is not meant for this server."""
    return {"PATH": os.defpath, "HOME": str(home), "LC_ALL": "C", "TZ": "UTC"}


async def _make(
    supervisor: Supervisor, programs: PostgresPrograms, data: Path, user: ServerUser, password: str, *, durable: bool
) -> None:
    """Makes the data folder under another name and renames it, so a killed initdb leaves nothing half-made behind."""
    fresh = data.with_name("postgres.new")
    await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
    give_folder(fresh, user)
    secret = give_file(data.with_name("postgres.pw"), password + "\n", user)
    try:
        await supervisor.run(
            ChildSpec(
                name="initdb",
                argv=[
                    programs.initdb,
                    *("--pgdata", fresh, "--username", ROLE, "--pwfile", secret, "--auth", "scram-sha-256"),
                    *("--encoding", "UTF8", "--no-locale", "--no-instructions"),
                    *("--set", f"scram_iterations={SETTINGS['scram_iterations']}"),
                    *(() if durable else ("--no-sync",)),
                ],
                env=_environment(data.parent),
                cwd=fresh,
                user=user,
            )
        )
    finally:
        secret.unlink(missing_ok=True)
    fresh.rename(data)


async def _answers(url: str) -> bool:
    """Whether our database answers a query; makes it where the server is new."""
    try:
        conn = await asyncpg.connect(url, timeout=4)
    except asyncpg.InvalidCatalogNameError:
        admin = await asyncpg.connect(url, database="postgres", timeout=4)
        try:
            await admin.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await admin.close(timeout=4)
        return True
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise EmbeddedFailed("the PostgreSQL on the remembered port does not take our password") from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    conn.terminate()
    return True
