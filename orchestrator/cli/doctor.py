"""`doctor`: looks at everything that the service stands on, and says what to do about what is missing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import click

from orchestrator.cli import options
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, clean, field, write_csv, write_document
from orchestrator.client import ApiProblem, ApiUnreachable, RebuildClient
from orchestrator.errors import RebuildError

OK, WARNING, FAILED = "ok", "warning", "failed"
OLDEST_POSTGRES = 150000
OLDEST_REDIS = 7

Finding = tuple[str, str]
"""ok, warning or failed, and a sentence."""


@click.command()
@click.option("--sign-in", is_flag=True, help="Also sign in to every cloud.")
@output_option
@pass_app
def doctor(app: App, *, sign_in: bool) -> None:
    """Check the settings, the API, the database, the broker and the clouds."""
    options.run(_doctor(app, sign_in=sign_in))


async def _doctor(app: App, *, sign_in: bool) -> int:
    checks: list[tuple[str, Callable[[App], Awaitable[Finding]]]] = [
        ("settings", _settings),
        ("api", _api),
        ("token", _token),
        ("database", _database),
        ("migrations", _migrations),
        ("broker", _broker),
    ]
    findings = [{"check": name, **_shown(await _guarded(check, app))} for name, check in checks]
    findings += [{"check": f"cloud {name}", **_shown(found)} for name, found in await _clouds(app, sign_in=sign_in)]
    if app.output is Output.TABLE:
        width = max(len(f["check"]) for f in findings)
        for finding in findings:
            print(clean(f"{finding['check'].ljust(width)}  {finding['result'].ljust(7)}  {finding['detail']}"))
    elif app.output is Output.CSV:
        write_csv(findings, (field("check"), field("result"), field("detail")))
    else:
        write_document({"items": findings, "next": None}, app.output)
    return Exit.FAILED if any(f["result"] == FAILED for f in findings) else Exit.OK


def _shown(finding: Finding) -> dict[str, str]:
    return {"result": finding[0], "detail": finding[1]}


async def _guarded(check: Callable[[App], Awaitable[Finding]], app: App) -> Finding:
    """A check that breaks has failed; its error's first line says how."""
    try:
        async with asyncio.timeout(20):
            return await check(app)
    except RebuildError as e:
        return FAILED, e.message
    except TimeoutError:
        return FAILED, "no answer within 20 s"
    except Exception as e:  # noqa: BLE001  whatever a driver or a library raises is a finding here
        cause: Any = getattr(e, "orig", None) or e
        return FAILED, f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"


async def _settings(app: App) -> Finding:
    return OK, f"state folder {app.settings.state_dir}"


async def _api(app: App) -> Finding:
    async with RebuildClient(app.settings.api_url, "", patience=0, timeout=10) as client:
        alive = await client.is_alive()
        ready = alive and await client.is_ready()
    if ready:
        return OK, app.settings.api_url
    if alive:
        return FAILED, f"{app.settings.api_url} answers but isn't ready: are its database and broker there?"
    return FAILED, f"{app.settings.api_url} does not answer: start `rebuildctl up`, or set REBUILD_API_URL"


async def _token(app: App) -> Finding:
    if not app.settings.token:
        return FAILED, "REBUILD_TOKEN is not set: `rebuildctl token create` makes one, `rebuildctl up` keeps one"
    try:
        async with RebuildClient(app.settings.api_url, app.settings.token, patience=0, timeout=10) as client:
            await client.list_plans(limit=1)
    except ApiProblem as e:
        return FAILED, e.message
    except ApiUnreachable:
        return WARNING, "not tried: the API does not answer"
    return OK, "the API takes it"


async def _database(app: App) -> Finding:
    if not app.settings.database_url:
        return WARNING, "REBUILD_DATABASE_URL is not set; only the service's own processes need it"
    from sqlalchemy import text

    from orchestrator.ledger.engine import open_engine

    async with open_engine(app.settings.database_url, name="rebuildctl", pool_size=1) as engine, engine.connect() as c:
        number = int((await c.execute(text("SHOW server_version_num"))).scalar_one())
        version = (await c.execute(text("SHOW server_version"))).scalar_one()
    if number < OLDEST_POSTGRES:
        return FAILED, f"PostgreSQL {version}; 15 or later is needed"
    return OK, f"PostgreSQL {version}"


async def _migrations(app: App) -> Finding:
    if not app.settings.database_url:
        return WARNING, "not looked at"
    from orchestrator.ledger.migrate import is_current

    if await is_current(app.settings.database_url):
        return OK, "the schema is this version's"
    return FAILED, "the schema is not this version's: run `rebuildctl migrate`"


async def _broker(app: App) -> Finding:
    if not app.settings.redis_url:
        return WARNING, "REBUILD_REDIS_URL is not set; only the service's own processes need it"
    from redis.asyncio import Redis

    async with Redis.from_url(app.settings.redis_url, socket_connect_timeout=5, socket_timeout=5) as redis:
        info: dict[str, Any] = await redis.info("server")
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    if int(version.partition(".")[0]) < OLDEST_REDIS:
        return FAILED, f"{name} {version}; Redis 7 or later, or Valkey, is needed"
    return OK, f"{name} {version}"


async def _clouds(app: App, *, sign_in: bool) -> list[tuple[str, Finding]]:
    from orchestrator.clouds.config import cloud_names, load_cloud
    from orchestrator.clouds.sign_in import sign_in_blocking

    try:
        names = await asyncio.to_thread(cloud_names, app.settings.clouds)
    except RebuildError as e:
        return [("configuration", (FAILED, e.message))]
    if not names:
        return [
            ("configuration", (WARNING, "no cloud here: see clouds.yaml, OS_CLIENT_CONFIG_FILE and REBUILD_CLOUDS"))
        ]

    async def look(name: str) -> Finding:
        async def check(_: App) -> Finding:
            config = await asyncio.to_thread(load_cloud, name, allowed=app.settings.clouds)
            if not sign_in:
                return OK, "configured; --sign-in tries it"
            await asyncio.to_thread(sign_in_blocking, config)
            return OK, "signed in"

        return await _guarded(check, app)

    return [(name, await look(name)) for name in names]
