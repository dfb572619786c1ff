"""A client of a rehearsal cloud, as preparing uses one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.clouds.config import load_cloud
from orchestrator.clouds.factory import open_cloud
from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.rehearsal import Running


@asynccontextmanager
async def client_of(running: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OpenStackCloud]:
    """Found by a clouds.yaml in `folder`; closed afterwards."""
    (folder / "clouds.yaml").write_text(running.clouds_yaml("rehearsal"))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(folder / "clouds.yaml"))
    cloud = open_cloud(load_cloud("rehearsal"), TokenCache())
    yield cloud
    await cloud.close()
