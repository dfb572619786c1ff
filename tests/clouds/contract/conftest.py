"""The contract's fixtures: the target, calls to it, and servers to try things on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.clouds.contract.target import Api, Document, Target, chosen_target, usable


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with chosen_target(Path(tmp_path_factory.mktemp("contract"))) as found:
        yield found


@pytest.fixture
async def api(target: Target) -> AsyncIterator[Api]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield Api(session, target)


@pytest.fixture
async def images(api: Api) -> list[str]:
    """Ids of active public images, at least two."""
    answer = await api("GET", f"{api.target.image}/v2/images?status=active&visibility=public&limit=100", version=None)
    found = sorted((i["name"], i["id"]) for i in answer.json["images"] if not i["min_disk"] and not i["min_ram"])
    assert len(found) >= 2, "the contract needs two active public images without a minimal size"
    return [image_id for _, image_id in found]


_turn = [0]


@pytest.fixture
async def servers(api: Api) -> AsyncIterator[list[Document]]:
    """Three servers of the allowed ones, other ones for each test in turn; put back afterwards."""
    answer = await api("GET", "/servers/detail?status=ACTIVE&sort_key=display_name&sort_dir=asc")
    found = usable(answer.json["servers"])
    assert len(found) >= 3, "the contract needs three running servers that it may rebuild"
    first = _turn[0] % len(found)
    _turn[0] += 3
    chosen = [found[(first + n) % len(found)] for n in range(3)]
    yield chosen
    for server in chosen:
        await api.restore(server)


@pytest.fixture
async def server(servers: list[Document]) -> Document:
    """One of them."""
    return servers[0]


@pytest.fixture
async def other_image(server: Document, images: list[str]) -> str:
    """An image that the server does not have."""
    return next(i for i in images if i != server["image"]["id"].lower())
