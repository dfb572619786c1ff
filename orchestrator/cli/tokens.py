"""`token`: over the API, or straight in the database where there is no token yet."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.context import App, output_option, pass_app
from orchestrator.cli.exits import Exit
from orchestrator.cli.output import Output, write_csv, write_document, write_list
from orchestrator.ledger.engine import open_engine
from orchestrator.service import tokens as service
from orchestrator.service.roles import Role

ACTOR = "rebuildctl"
"""Who made a token, where that was no other token."""

direct_option = click.option(
    "--direct",
    is_flag=True,
    help="Work in the database of REBUILD_DATABASE_URL, not over the API; the default where no REBUILD_TOKEN is set.",
)


@click.group()
def token() -> None:
    """Make, list and revoke API tokens."""


def _is_direct(app: App, *, direct: bool) -> bool:
    """A first token can't be asked for with a token."""
    settings = app.settings
    if direct and not settings.database_url:
        raise click.UsageError("--direct needs REBUILD_DATABASE_URL")
    return direct or (not settings.token and bool(settings.database_url))


@token.command()
@click.argument("name", required=False)
@click.option("--name", "name_option", help="The same as NAME; it is never given to another token.")
@click.option("--role", type=click.Choice([str(r) for r in Role]), required=True)
@click.option("--cloud", "clouds", multiple=True, help="Only this cloud; may be given again. All.")
@click.option("--max-targets", type=click.IntRange(1), help="The most servers in one plan.")
@click.option("--expires", help="When it ends: after a time, such as 90d, or at one, such as 2027-01-31T00:00:00Z.")
@direct_option
@output_option
@pass_app
def create(app: App, name: str | None, name_option: str | None, *, direct: bool, **wanted: Any) -> None:
    """Make a token. Its secret is printed this once, alone on stdout."""
    given = name or name_option
    if not given or (name and name_option):
        raise click.UsageError("a token needs one name")
    wanted["expires"] = _moment(wanted["expires"])
    options.run(_create(app, given, direct=_is_direct(app, direct=direct), **wanted))


async def _create(app: App, name: str, *, direct: bool, role: str, **limits: Any) -> int:
    if direct:
        async with open_engine(app.settings.database_url, name="rebuildctl", pool_size=1) as engine:
            view, secret = await service.create_token(engine, name, Role(role), created_by=ACTOR, **limits)
        document: dict[str, Any] = {**view.model_dump(mode="json"), "token": secret}
    else:
        async with app.client() as client:
            expires = limits.pop("expires")
            document = (await client.create_token(name, role=role, expires_at=expires, **limits)).raw
    if app.output is Output.TABLE:
        app.note(f"Token {document['name']} ({document['role']}), id {document['id']}; this is shown once:")
        print(document["token"])
    elif app.output is Output.CSV:
        write_csv([document], (*shapes.TOKENS, ("token", lambda item: item["token"])))
    else:
        write_document(document, app.output)
    return Exit.OK


@token.command("list")
@direct_option
@output_option
@pass_app
def list_tokens(app: App, *, direct: bool) -> None:
    """List tokens, revoked ones too."""
    options.run(_list(app, direct=_is_direct(app, direct=direct)))


async def _list(app: App, *, direct: bool) -> int:
    items, cursor = await _known(app, direct=direct)
    write_list({"items": items, "next": cursor}, app.output, shapes.TOKENS, empty="There is no token yet.")
    return Exit.OK


@token.command()
@click.argument("name_or_id", metavar="NAME|ID")
@direct_option
@output_option
@pass_app
def revoke(app: App, name_or_id: str, *, direct: bool) -> None:
    """Revoke a token; it is refused within seconds."""
    options.run(_revoke(app, name_or_id, direct=_is_direct(app, direct=direct)))


async def _revoke(app: App, name_or_id: str, *, direct: bool) -> int:
    items, _ = await _known(app, direct=direct)
    found = next((item for item in items if name_or_id in (item["id"], item["name"])), None)
    if found is None:
        raise click.UsageError(f"there is no token {name_or_id!r}; `rebuildctl token list` has them")
    if direct:
        async with open_engine(app.settings.database_url, name="rebuildctl", pool_size=1) as engine:
            document: Any = (await service.revoke_token(engine, UUID(found["id"]))).model_dump(mode="json")
    else:
        async with app.client() as client:
            document = await client.revoke_token(found["id"])
    if app.output is Output.TABLE:
        print(f"Revoked {found['name']}.")
    elif app.output is Output.CSV:
        write_csv([document or found], shapes.TOKENS)
    else:
        write_document(document or found, app.output)
    return Exit.OK


async def _known(app: App, *, direct: bool) -> tuple[list[dict[str, Any]], str | None]:
    if direct:
        async with open_engine(app.settings.database_url, name="rebuildctl", pool_size=1) as engine:
            return [view.model_dump(mode="json") for view in await service.list_tokens(engine)], None
    async with app.client() as client:
        page = await client.tokens()
        return [item.raw for item in page.items], page.next


def _moment(text: str | None) -> datetime | None:
    """A point in time from a duration or an RFC 3339 time with its offset."""
    if text is None:
        return None
    try:
        return datetime.now(UTC) + timedelta(seconds=options.Duration().convert(text, None, None))
    except click.BadParameter:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter("give a duration such as 90d, or a time with its offset such as 2027-01-31T00:00:00Z")
    return moment
