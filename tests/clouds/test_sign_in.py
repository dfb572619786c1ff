"""Signing in: once for everybody, in time, again after a 401, and with errors that name the remedy and no secret."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clouds import sign_in as module
from orchestrator.clouds.config import CloudConfig, load_cloud
from orchestrator.clouds.protocol import Project
from orchestrator.clouds.sign_in import SignedIn, TokenCache, boot_clock, sign_in_blocking
from orchestrator.errors import CloudConfigInvalid, CloudSignInRefused, CloudUnreachable
from orchestrator.rehearsal import RehearsalConfig, Running, serve_in_thread

Load = Callable[..., CloudConfig]


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Running]:
    with serve_in_thread(RehearsalConfig(servers=3)) as running:
        yield running


@pytest.fixture
def load(rehearsal: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """The rehearsal cloud's configuration, with changes to the entry; `whole`: nothing of its own `auth`."""
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    monkeypatch.delenv("OS_CLOUD", raising=False)

    def load(auth: dict[str, Any] | None = None, *, whole: bool = False, **more: Any) -> CloudConfig:
        entry = rehearsal.cloud_entry()
        entry["auth"] = auth if whole else {**entry["auth"], **(auth or {})}
        path.write_text(json.dumps({"clouds": {"reh": {**entry, **more}}}))
        return load_cloud("reh")

    return load


def token(name: str = "t1", *, age: float = 0.0, lifetime: float = 3600.0) -> SignedIn:
    return SignedIn(
        token=name,
        project=Project(deployment="k", region="r", project_id="p"),
        user_id="u",
        compute_url="http://127.0.0.1/v2.1",
        image_url=None,
        signed_at=boot_clock() - age,
        issued_at=datetime(2026, 11, 23, 10, tzinfo=UTC),
        lifetime=lifetime,
    )


class Door:
    """A sign-in that counts, and waits where told to."""

    def __init__(self) -> None:
        self.count = 0
        self.lifetime = 3600.0
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def __call__(self, _: CloudConfig) -> SignedIn:
        self.count += 1
        number = self.count
        assert self.open.wait(5)
        if self.error:
            raise self.error
        return token(f"t{number}", lifetime=self.lifetime)


def test_a_password_signs_in_to_its_project(load: Load, rehearsal: Running) -> None:
    signed = sign_in_blocking(load())
    fleet = rehearsal.cloud.config.fleet_user
    assert (signed.project.project_id, signed.project.region, signed.user_id) == (
        fleet.project_id,
        "RegionOne",
        fleet.id,
    )
    assert signed.compute_url == rehearsal.compute_url
    assert signed.image_url
    assert signed.lifetime == pytest.approx(3600, abs=2)
    assert abs((signed.cloud_now() - datetime.now(UTC)).total_seconds()) < 3
    assert signed.token not in repr(signed)


def test_an_application_credential_and_a_token_sign_in_too(load: Load, rehearsal: Running) -> None:
    fleet = rehearsal.cloud.config.fleet_user
    credential = {
        "auth_url": rehearsal.auth_url,
        "application_credential_id": fleet.credential_id,
        "application_credential_secret": fleet.password,
    }
    first = sign_in_blocking(load(credential, whole=True, auth_type="v3applicationcredential"))
    by_token = {"auth_url": rehearsal.auth_url, "token": first.token, "project_id": fleet.project_id}
    second = sign_in_blocking(load(by_token, whole=True, auth_type="v3token"))
    assert first.project == second.project
    assert first.token != second.token


def test_the_region_is_the_catalogs_where_it_has_only_one(load: Load) -> None:
    assert sign_in_blocking(load(region_name=None)).project.region == "RegionOne"


def test_two_ways_to_the_identity_service_name_one_deployment(load: Load, rehearsal: Running) -> None:
    by_name = rehearsal.auth_url.replace("127.0.0.1", "localhost")
    assert sign_in_blocking(load({"auth_url": by_name})).project == sign_in_blocking(load()).project


def test_an_endpoint_override_wins_and_takes_the_projects_id(load: Load, rehearsal: Running) -> None:
    project_id = rehearsal.cloud.config.fleet_user.project_id
    signed = sign_in_blocking(
        load(
            compute_endpoint_override="http://127.0.0.1:1/v2.1/%(project_id)s",
            image_endpoint_override="http://127.0.0.1:2/",
        )
    )
    assert signed.compute_url == f"http://127.0.0.1:1/v2.1/{project_id}"
    assert signed.image_url == "http://127.0.0.1:2"


@pytest.mark.parametrize("auth", [{"password": "wr0ng"}, {"username": "nobody"}, {"project_name": "nowhere"}])
def test_a_refused_sign_in_names_user_and_project_and_no_secret(load: Load, auth: dict[str, str]) -> None:
    config = load(auth)
    with pytest.raises(CloudSignInRefused) as caught:
        sign_in_blocking(config)
    assert repr(config.user) in caught.value.message
    assert repr(config.project) in caught.value.message
    assert "clouds.reh.auth" in caught.value.message
    assert "wr0ng" not in caught.value.message
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("path", ["/v3", ""])
def test_a_refused_connection_is_unreachable_and_names_the_host(load: Load, path: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(CloudUnreachable, match=host):
            sign_in_blocking(load({"auth_url": f"http://{host}{path}"}))


def test_a_name_that_cant_be_resolved_is_unreachable(load: Load) -> None:
    with pytest.raises(CloudUnreachable, match=r"cloud\.invalid"):
        sign_in_blocking(load({"auth_url": "http://cloud.invalid:5000/v3"}))


def test_tls_where_there_is_none_is_unreachable(load: Load, rehearsal: Running) -> None:
    with pytest.raises(CloudUnreachable, match=rehearsal.url.removeprefix("http://")):
        sign_in_blocking(load({"auth_url": rehearsal.auth_url.replace("http", "https")}))


def test_an_identity_service_that_hangs_is_given_up(load: Load) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(CloudUnreachable, match=r"in time|can't be reached"):
            sign_in_blocking(load({"auth_url": f"http://127.0.0.1:{silent.getsockname()[1]}/v3"}, api_timeout=0.2))


def test_a_region_that_the_catalog_lacks_is_a_fault_of_the_configuration(load: Load) -> None:
    with pytest.raises(CloudConfigInvalid, match=r"region_name.*public in Nowhere.*RegionOne"):
        sign_in_blocking(load(region_name="Nowhere"))


def test_an_interface_that_the_catalog_lacks_is_named(load: Load) -> None:
    with pytest.raises(CloudConfigInvalid, match="lacking in RegionOne"):
        sign_in_blocking(load(interface="lacking"))


def test_an_unscoped_sign_in_is_a_fault_of_the_configuration(load: Load, rehearsal: Running) -> None:
    auth = {k: v for k, v in rehearsal.cloud_entry()["auth"].items() if not k.startswith("project")}
    with pytest.raises(CloudConfigInvalid, match="project"):
        sign_in_blocking(load(auth, whole=True))


def test_a_way_to_sign_in_without_a_project_is_refused(load: Load) -> None:
    with pytest.raises(CloudConfigInvalid, match="auth_type"):
        sign_in_blocking(load({"endpoint": "http://127.0.0.1:1"}, whole=True, auth_type="none"))


async def test_many_who_ask_at_once_sign_in_once(load: Load) -> None:
    door, config = Door(), load()
    door.open.clear()
    cache = TokenCache(door)
    asking = [asyncio.create_task(cache.get(config)) for _ in range(100)]
    await asyncio.sleep(0)
    door.open.set()
    assert {signed.token for signed in await asyncio.gather(*asking)} == {"t1"}
    assert door.count == 1
    await cache.get(config)
    assert door.count == 1


async def test_many_who_were_refused_the_token_renew_it_once(load: Load) -> None:
    door, config = Door(), load()
    cache = TokenCache(door)
    old = await cache.get(config)
    renewed = await asyncio.gather(*(cache.renew(config, old) for _ in range(100)))
    assert {signed.token for signed in renewed} == {"t2"}
    assert (await cache.renew(config, old)).token == "t2"
    assert door.count == 2


async def test_a_token_near_its_end_is_renewed_before_its_use(load: Load) -> None:
    door, config = Door(), load()
    door.lifetime = 0.0
    cache = TokenCache(door)
    await cache.get(config)
    door.lifetime = 3600.0
    assert (await cache.get(config)).token == "t2"
    assert (await cache.get(config)).token == "t2"


def test_near_its_end_is_five_minutes_or_a_fifth_of_a_short_life() -> None:
    assert not token(age=3000, lifetime=3600).near_its_end
    assert token(age=3301, lifetime=3600).near_its_end
    assert not token(age=40, lifetime=60).near_its_end
    assert token(age=49, lifetime=60).near_its_end


def test_the_clouds_clock_is_carried_on_from_the_sign_in() -> None:
    assert token(age=90.5).cloud_now() == datetime(2026, 11, 23, 10, 1, 30, tzinfo=UTC)


async def test_a_failed_sign_in_is_told_to_all_who_wait_and_tried_anew_by_the_next(load: Load) -> None:
    door, config = Door(), load()
    door.error = CloudSignInRefused("no")
    cache = TokenCache(door)
    results = await asyncio.gather(*(cache.get(config) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(r, CloudSignInRefused) for r in results)
    assert door.count == 1
    door.error = None
    assert (await cache.get(config)).token == "t2"


async def test_who_stops_waiting_does_not_stop_the_others(load: Load) -> None:
    door, config = Door(), load()
    door.open.clear()
    cache = TokenCache(door)
    first, second = asyncio.create_task(cache.get(config)), asyncio.create_task(cache.get(config))
    await asyncio.sleep(0)
    first.cancel()
    door.open.set()
    assert (await second).token == "t1"
    assert door.count == 1


def test_the_cache_serves_one_event_loop_after_another(load: Load) -> None:
    door, config = Door(), load()
    cache = TokenCache(door)
    assert [asyncio.run(cache.get(config)).token for _ in range(3)] == ["t1"] * 3
    cache.forget(config.name)
    assert asyncio.run(cache.get(config)).token == "t2"


def test_a_secret_in_the_clouds_words_is_cut_out(load: Load) -> None:
    config = load({"password": "hunter2"})
    error = module._explained(config, ValueError("password 'hunter2' is not of type"))
    assert "hunter2" not in error.message
    assert "***" in error.message


def test_tokens_can_be_compared_by_identity() -> None:
    one = token()
    assert replace(one) is not one


@pytest.mark.parametrize("path", ["", "/v3"])
def test_trouble_with_tls_is_named_also_where_it_struck_the_version_discovery(
    load: Load, rehearsal: Running, path: str
) -> None:
    root = rehearsal.auth_url.replace("http", "https").removesuffix("/v3")
    with pytest.raises(CloudUnreachable, match=r"TLS.*cacert"):
        sign_in_blocking(load({"auth_url": f"{root}{path}"}))
