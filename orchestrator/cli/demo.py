"""`demo`: the whole service at work on a rehearsal cloud, in a folder that is removed at the end."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import yaml
from yarl import URL

from orchestrator.cli import options
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import span
from orchestrator.cli.processes import until_told
from orchestrator.cli.site import Site, SiteOptions, running
from orchestrator.cli.submit import say_plan, write_plan
from orchestrator.cli.watch import Waited, say_end, view_for, wait_for
from orchestrator.client import RebuildClient, new_idempotency_key
from orchestrator.embedded import ChildSpec
from orchestrator.log import configure

CLOUD = "rehearsal"
REBUILD_SECONDS = "1-3"


@click.command()
@click.option("--servers", type=click.IntRange(1, 100_000), default=200, show_default=True)
@click.option("--exit", "exits", is_flag=True, help="End with the plan; so it is also without a terminal.")
@output_option
@pass_app
def demo(app: App, servers: int, *, exits: bool) -> None:
    """Rebuild the servers of a rehearsal cloud, from nothing to the end, in a minute or so.

    Nothing real is touched: no cloud of yours, no database of yours.
    """
    configure("error", "auto")
    folder = Path(tempfile.mkdtemp(prefix="rebuild-demo-"))
    try:
        options.run(_demo(app, folder, servers, stays=app.is_interactive and not exits))
    finally:
        _remove(folder)


@dataclass(kw_only=True)
class _Outcome:
    """The exit code, once the plan has ended."""

    code: int | None = None


async def _demo(app: App, folder: Path, servers: int, *, stays: bool) -> int:
    outcome = _Outcome()
    async with until_told() as told:
        work = asyncio.create_task(_perform(app, folder, servers, told if stays else None, outcome))
        stop = asyncio.create_task(told.wait())
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if told.is_set() and outcome.code is None:
            app.note("Stopping …")
            work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
    return Exit.INTERRUPTED if outcome.code is None else outcome.code


async def _perform(app: App, folder: Path, servers: int, look: asyncio.Event | None, outcome: _Outcome) -> None:
    """Starts everything, sees one plan through and says what the rehearsal cloud counted; then waits for `look`."""
    clouds_file = folder / "clouds.yaml"
    wanted = SiteOptions(state_dir=folder, bind="127.0.0.1:0", env=_environment(clouds_file), durable=False)
    app.say(f"Starting a rehearsal cloud of {servers} servers …")
    async with running(wanted, say=app.say, before=[_rehearsal(wanted.env, clouds_file, servers)]) as site:
        app.say(f"Up at {site.api_url}")
        async with RebuildClient(site.api_url, site.token) as client:
            plan = await client.submit(_plan(servers), idempotency_key=new_idempotency_key())
            say_plan(app, plan)
            with view_for(app, plan) as view:
                # Four waves, each with a rebuild's time after its last call; the rest is a slow machine's.
                waited = await wait_for(client, plan, view, timeout=60 + 2 * servers / _rate(servers))
            write_plan(app, waited.plan)
            say_end(app, waited)
            once = await _say_account(app, clouds_file, waited, servers)
        outcome.code = int(waited.exit) or (Exit.OK if once else Exit.FAILED)
        if look is not None:
            _say_look(app, site)
            await look.wait()
            app.say("Stopping …")


def _rehearsal(env: Mapping[str, str], clouds_file: Path, servers: int) -> ChildSpec:
    rate = f"{_rate(servers)}/s"
    argv = [
        sys.executable, "-m", "orchestrator.cli", "rehearse", "--servers", str(servers), "--port", "0",
        "--rebuild-seconds", REBUILD_SECONDS, "--rate", rate, "--clouds-file", str(clouds_file), "--name", CLOUD,
    ]  # fmt: skip

    async def ready() -> bool:
        return await asyncio.to_thread(lambda: clouds_file.exists() and clouds_file.stat().st_size > 0)

    return ChildSpec(name="rehearsal", argv=argv, env=env, ready=ready, restart=False)


def _rate(servers: int) -> int:
    """Calls per second: ten, so that the picture can be watched; more for large fleets, which then take no longer."""
    return max(10, servers // 20)


def _plan(servers: int) -> dict[str, Any]:
    return {
        "name": f"demo: {servers} servers to base-2026.11",
        "cloud": CLOUD,
        "image": "base-2026.11",
        "targets": {"select": {"name": "node-*"}},
        "rollout": {
            "waves": [{"name": "canary", "size": 1}, {"size": "5%"}, {"size": "25%"}, {"size": "100%"}],
            "max_in_flight": max(50, servers // 4),
        },
        "labels": {"demo": "true"},
    }


def _environment(clouds_file: Path) -> dict[str, str]:
    """Ours, without a word of the user's own clouds, service or limits: the demo must touch none of them."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OS_", "REBUILD_"))}
    debug = {key: value for key, value in os.environ.items() if key in ("REBUILD_DEBUG", "REBUILD_LOG_LEVEL")}
    return {**kept, **debug, "OS_CLIENT_CONFIG_FILE": str(clouds_file)}


async def _say_account(app: App, clouds_file: Path, waited: Waited, servers: int) -> bool:
    """What the cloud itself counted; whether it took exactly one rebuild for each server."""
    auth_url = yaml.safe_load(await asyncio.to_thread(clouds_file.read_text))["clouds"][CLOUD]["auth"]["auth_url"]
    async with (
        aiohttp.ClientSession() as session,
        session.get(str(URL(auth_url).with_path("/rehearsal/account"))) as got,
    ):
        account = await got.json()
    once = not account["accepted_twice"] and account["accepted"] == servers
    plan = waited.plan
    if plan.started_at and plan.finished_at:
        app.say(f"  duration        {span((plan.finished_at - plan.started_at).total_seconds())}")
    app.say(f"  busiest second  {account['busiest_second']['rebuilds']} rebuilds, paced at {_rate(servers)}/s")
    app.say(f"  in flight       {account['highest_in_flight']} at most")
    if once:
        app.say(f"  exactly once    each of the {servers} servers accepted exactly one rebuild")
    else:
        twice = len(account["accepted_twice"])
        app.say(f"  exactly once    no: {account['accepted']} rebuilds of {servers} servers, {twice} more than once")
    return once


def _say_look(app: App, site: Site) -> None:
    app.say()
    app.say(f"Everything still runs: have a look at {site.api_url}")
    app.say(f"  sign in with  {site.token}")
    app.say(f"  rebuildctl    REBUILD_STATE_DIR={site.state_dir} rebuildctl status")
    app.say("Ctrl-C stops it and removes it.")


def _remove(folder: Path) -> None:
    """The folder, and the servers' own where they had to live elsewhere."""
    servers = folder / "servers"
    if servers.is_symlink():
        shutil.rmtree(servers.resolve(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
