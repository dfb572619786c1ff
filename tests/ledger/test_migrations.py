"""The migrations make exactly the tables that the code has, whoever runs them."""

import asyncio
import sys
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.migrate import alembic_config, is_current, upgrade
from orchestrator.ledger.tables import Base
from tests.ledger.plant import column


async def differences(database_url: str) -> list[Any]:
    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )  # fmt: skip
        return list(compare_metadata(context, Base.metadata))

    async with open_engine(database_url, name="test") as engine, engine.connect() as conn:
        return await conn.run_sync(compare)


def test_there_is_one_head() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("postgresql://nobody@localhost/none"))
    assert len(scripts.get_heads()) == 1
    assert len(scripts.get_bases()) == 1


async def test_tables_and_migrations_do_not_drift(database_url: str) -> None:
    assert await differences(database_url) == []


async def test_upgrading_twice_changes_nothing(blank_database_url: str) -> None:
    assert not await is_current(blank_database_url)
    await upgrade(blank_database_url)
    assert await is_current(blank_database_url)
    await upgrade(blank_database_url)
    assert await is_current(blank_database_url)


async def test_two_processes_may_upgrade_at_once(blank_database_url: str) -> None:
    """As two workers that start together do; each runs Alembic in a process of its own."""
    code = "import asyncio, sys; from orchestrator.ledger.migrate import upgrade; asyncio.run(upgrade(sys.argv[1]))"
    ends = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, blank_database_url, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(60):
        said = [(await p.communicate())[1].decode() for p in ends]
    assert [p.returncode for p in ends] == [0, 0], said
    assert await is_current(blank_database_url)


async def test_all_can_be_taken_back_and_made_again(blank_database_url: str) -> None:
    await upgrade(blank_database_url)
    await asyncio.to_thread(command.downgrade, alembic_config(blank_database_url), "base")
    async with open_engine(blank_database_url, name="test") as engine, engine.connect() as conn:
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        assert await column(conn, tables) == ["alembic_version"]
    assert not await is_current(blank_database_url)
    await upgrade(blank_database_url)
    assert await differences(blank_database_url) == []
