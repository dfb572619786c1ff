"""Brings a database to the newest revision; safe to run from many processes at once."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from orchestrator.ledger.engine import open_engine, sqlalchemy_url

SCRIPTS = Path(__file__).resolve().parents[2] / "migrations"


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["url"] = sqlalchemy_url(database_url)
    return config


async def upgrade(database_url: str) -> None:
    """Upgrades to the head revision; waits for another process that is at it (advisory lock)."""
    await asyncio.to_thread(command.upgrade, alembic_config(database_url), "head")


async def is_current(database_url: str) -> bool:
    """Whether the database has the newest revision."""
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(alembic_config(database_url)).get_current_head()
    async with open_engine(database_url, name="rebuild-migrate", pool_size=1) as engine, engine.connect() as conn:
        there = (await conn.execute(text("SELECT to_regclass('alembic_version')"))).scalar_one()
        if there is None:
            return False
        return (await conn.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none() == head
