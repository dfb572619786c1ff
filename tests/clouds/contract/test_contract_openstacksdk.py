"""OpenStack's own client works with it: signs in, discovers, lists, rebuilds and waits."""

import asyncio

import openstack

from tests.clouds.contract.target import PATIENCE, Api, Document


async def test_openstacksdk_lists_rebuilds_and_waits(api: Api, server: Document, other_image: str) -> None:
    files = [str(api.target.clouds_file)] if api.target.clouds_file else None

    def with_the_sdk() -> tuple[list[str], str, str, str]:
        config = openstack.config.OpenStackConfig(config_files=files, load_envvars=files is None)
        with openstack.connection.Connection(config=config.get_one(cloud=api.target.name)) as connection:
            names = [s.name for s in connection.compute.servers()]
            image = connection.image.get_image(other_image)
            begun = connection.compute.rebuild_server(server["id"], image=image.id)
            status = begun.status
            done = connection.compute.wait_for_server(begun, status="ACTIVE", interval=0.1, wait=PATIENCE)
            return names, status, done.status, done.image.id

    names, begun, done, image_id = await asyncio.to_thread(with_the_sdk)
    assert server["name"] in names
    assert (begun, done, image_id) == ("REBUILD", "ACTIVE", other_image)
