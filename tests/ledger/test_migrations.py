"""Migrations: one head, the same tables as the models, safe to run again and at once."""

import asyncio
import sys

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from orchestrator.ledger.engine import open_engine
from orchestrator.ledger.migrate import alembic_config, is_current, upgrade
from orchestrator.ledger.tables import Base


def test_there_is_one_head() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("postgresql://nobody@nowhere/none"))
    assert len(scripts.get_heads()) == 1


async def test_a_migrated_database_has_exactly_the_tables_of_the_models(database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": Base.metadata}
        )
        return list(compare_metadata(context, Base.metadata))

    async with open_engine(database_url, name="tests") as engine, engine.connect() as conn:
        assert await conn.run_sync(differences) == []


async def test_drift_is_seen(database_url: str) -> None:
    """The check above can fail: a column more, and it does."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with open_engine(database_url, name="tests") as engine, engine.begin() as conn:
        await conn.execute(text("ALTER TABLE plans ADD COLUMN drifted text"))
        assert await conn.run_sync(differences) != []


async def test_upgrading_at_once_from_several_processes_and_again_is_safe(blank_database_url: str) -> None:
    assert not await is_current(blank_database_url)
    code = "import asyncio, sys; from orchestrator.ledger.migrate import upgrade; asyncio.run(upgrade(sys.argv[1]))"
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", code, blank_database_url) for _ in range(3)]
    assert [await p.wait() for p in processes] == [0, 0, 0]
    assert await is_current(blank_database_url)
    await upgrade(blank_database_url)
    assert await is_current(blank_database_url)


async def test_down_to_nothing_and_up_again(database_url: str) -> None:
    await asyncio.to_thread(command.downgrade, alembic_config(database_url), "base")
    async with open_engine(database_url, name="tests") as engine, engine.connect() as conn:
        tables = await conn.execute(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
        assert tables.scalar_one() == 1  # alembic_version
    await upgrade(database_url)
    assert await is_current(database_url)
