"""What every other acceptance test stands on."""

import os

import aiohttp
import pytest

from tests.clouds.contract.target import PATTERN, REAL, Api, chosen_target, usable

pytestmark = pytest.mark.acceptance


@pytest.mark.skipif(not REAL, reason="needs ACCEPTANCE=1 and OS_CLOUD")
async def test_the_named_cloud_has_servers_that_may_be_rebuilt_and_images_to_rebuild_to(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with chosen_target(tmp_path_factory.mktemp("ground")) as target:
        async with aiohttp.ClientSession() as session:
            api = Api(session, target)
            servers = usable((await api("GET", "/servers/detail?limit=1000")).json["servers"])
            images = (await api("GET", f"{target.image}/v2/images?status=active", version=None)).json["images"]
    assert len(servers) >= 3, f"{os.environ['OS_CLOUD']} has {len(servers)} running servers that match {PATTERN}"
    assert len(images) >= 2
