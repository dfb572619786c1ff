"""Clouds are found as the OpenStack tools find them, and our own settings are checked strictly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clouds.config import CloudSettings, cloud_names, default_cloud, load_cloud
from orchestrator.clouds.factory import open_cloud
from orchestrator.clouds.sign_in import TokenCache
from orchestrator.errors import CloudConfigInvalid, CloudUnknown

AUTH = {
    "auth_url": "http://127.0.0.1:5000/v3",
    "username": "fleet",
    "password": "s3cret{x}",
    "project_name": "web",
    "user_domain_name": "Default",
    "project_domain_name": "Default",
}
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes clouds.yaml (JSON is YAML) and clears the environment of OS_*."""
    for name in ("OS_CLOUD", "OS_REGION_NAME", "OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_CLIENT_SECURE_FILE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "clouds.yaml"
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))

    def write(**clouds: dict[str, Any]) -> None:
        path.write_text(json.dumps({"clouds": {name.replace("_", "-"): entry for name, entry in clouds.items()}}))

    return write


def entry(**more: Any) -> dict[str, Any]:
    return {"auth": AUTH, "region_name": "eu-1", **more}


def test_the_connection_is_read_by_openstacksdk(write: Write, tmp_path: Path) -> None:
    write(
        prod_eu=entry(
            interface="internal",
            cacert=str(tmp_path / "ca.pem"),
            compute_api_version="2.60",
            compute_endpoint_override="http://127.0.0.1:8774/v2.1",
            api_timeout=7,
        )
    )
    config = load_cloud("prod-eu")
    assert (config.region_name, config.auth_url, config.user, config.project) == (
        "eu-1",
        AUTH["auth_url"],
        "fleet",
        "web",
    )
    assert config.verify == str(tmp_path / "ca.pem")
    assert config.microversion_cap == (2, 60)
    assert config.compute_endpoint == "http://127.0.0.1:8774/v2.1"
    assert config.image_endpoint is None
    assert config.api_timeout == 7.0
    assert "s3cret" not in repr(config)
    assert config.secrets == ("s3cret{x}",)


def test_an_api_version_without_a_microversion_is_no_cap(write: Write) -> None:
    write(one=entry(compute_api_version="2"), two=entry(compute_api_version="2.0"), three=entry())
    assert [load_cloud(n).microversion_cap for n in ("one", "two", "three")] == [None, None, None]


def test_verification_can_be_turned_off_and_a_client_certificate_given(write: Write) -> None:
    write(one=entry(verify=False, cert="/c.pem", key="/k.pem"), two=entry(insecure="true", cert="/c.pem"))
    assert (load_cloud("one").verify, load_cloud("one").cert) == (False, ("/c.pem", "/k.pem"))
    assert (load_cloud("two").verify, load_cloud("two").cert) == (False, ("/c.pem", None))


def test_secrets_may_stand_in_secure_yaml(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(lab={**entry(), "auth": {k: v for k, v in AUTH.items() if k != "password"}})
    secure = tmp_path / "secure.yaml"
    secure.write_text(json.dumps({"clouds": {"lab": {"auth": {"password": "from-secure"}}}}))
    monkeypatch.setenv("OS_CLIENT_SECURE_FILE", str(secure))
    assert load_cloud("lab").secrets == ("from-secure",)


def test_os_variables_alone_make_the_cloud_envvars(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write(lab=entry())
    for key, value in AUTH.items():
        monkeypatch.setenv(f"OS_{key.upper()}", value)
    monkeypatch.setenv("OS_REGION_NAME", "eu-9")
    assert cloud_names() == ["envvars", "lab"]
    config = load_cloud("envvars")
    assert (config.user, config.region_name, config.source) == ("fleet", "eu-9", "the environment (OS_*)")
    assert default_cloud() == "envvars"


def test_os_cloud_names_the_default(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    write(a=entry(), b=entry())
    assert default_cloud() is None
    monkeypatch.setenv("OS_CLOUD", "b")
    assert default_cloud() == "b"


def test_an_unknown_cloud_is_refused_with_the_known_ones(write: Write) -> None:
    write(a=entry(), b=entry(), c=entry())
    with pytest.raises(CloudUnknown, match=r"'x'.*known: a, b, c"):
        load_cloud("x")
    with pytest.raises(CloudUnknown, match=r"'b'.*known: a, c\."):
        load_cloud("b", allowed=["a", "c"])
    assert cloud_names(["c", "nowhere"]) == ["c"]


def test_nothing_configured_is_no_cloud(write: Write) -> None:
    write()
    assert cloud_names() == []
    assert default_cloud() is None
    with pytest.raises(CloudUnknown):
        load_cloud("defaults")


@pytest.mark.parametrize("regions", [{"region_name": ["eu-1", "eu-2"]}, {"regions": ["eu-1", "eu-2"]}])
def test_a_cloud_of_several_regions_is_refused_unless_one_is_chosen(
    write: Write, regions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = entry()
    del base["region_name"]
    write(lab={**base, **regions})
    with pytest.raises(CloudConfigInvalid, match="eu-1, eu-2") as caught:
        load_cloud("lab")
    assert caught.value.errors[0].path == "clouds.lab.region_name"
    monkeypatch.setenv("OS_REGION_NAME", "eu-2")
    assert load_cloud("lab").region_name == "eu-2"


def test_an_unknown_way_to_sign_in_is_refused(write: Write) -> None:
    write(lab=entry(auth_type="v9nonsense"))
    with pytest.raises(CloudConfigInvalid, match=r"clouds\.lab.*v9nonsense"):
        load_cloud("lab")


def test_settings_have_careful_defaults(write: Write) -> None:
    write(lab=entry())
    settings = load_cloud("lab").settings
    assert settings.model_dump(mode="json") == {
        "kind": "nova",
        "write_rate": 5.0,
        "read_rate": 10.0,
        "max_in_flight": 500,
        "quiescence": 600.0,
        "resend": "never",
        "marker": True,
        "error_rebuild": True,
        "protect": {"metadata": {}, "tags": []},
        "approval": {"start": False, "by_other": False, "expires": 86400.0},
    }


def test_settings_are_read_from_the_clouds_entry(write: Write) -> None:
    write(
        lab=entry(
            rebuild={
                "write_rate": "30/m",
                "read_rate": "2.5/s",
                "quiescence": "1h",
                "resend": "after_quiescence",
                "protect": {"metadata": {"do-not-touch": "true"}, "tags": ["no-rebuild"]},
            }
        )
    )
    settings = load_cloud("lab").settings
    assert (settings.write_rate, settings.read_rate, settings.quiescence) == (0.5, 2.5, 3600.0)
    assert settings.resend == "after_quiescence"
    # openstacksdk turns dashes of keys into underscores; what protects servers must stay as written.
    assert dict(settings.protect.metadata) == {"do-not-touch": "true"}
    assert settings.protect.tags == ("no-rebuild",)


def test_huawei_has_its_own_defaults_and_is_refused_when_opened(write: Write) -> None:
    write(hw=entry(rebuild={"kind": "huawei"}), own=entry(rebuild={"kind": "huawei", "write_rate": "1/s"}))
    settings = load_cloud("hw").settings
    assert (settings.marker, settings.error_rebuild) == (False, False)
    assert settings.write_rate == pytest.approx(1 / 6)
    assert load_cloud("own").settings.write_rate == 1.0
    with pytest.raises(CloudConfigInvalid) as caught:
        open_cloud(load_cloud("hw"), TokenCache())
    assert caught.value.reason_code == "not_supported_yet"


@pytest.mark.parametrize(
    ("rebuild", "path"),
    [
        ({"write_rate": "fast"}, "write_rate"),
        ({"write_rate": 5}, "write_rate"),
        ({"read_rate": "0/s"}, "read_rate"),
        ({"quiescence": "10"}, "quiescence"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_in_flight": "5"}, "max_in_flight"),
        ({"resend": "always"}, "resend"),
        ({"marker": "yes"}, "marker"),
        ({"kind": "aws"}, "kind"),
        ({"wirte_rate": "5/s"}, "wirte_rate"),
        ({"protect": {"metadata": {"protected": True}}}, "protect.metadata.protected"),
        ({"protect": {"tags": "no-rebuild"}}, "protect.tags"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(write: Write, rebuild: dict[str, Any], path: str) -> None:
    write(prod_eu=entry(rebuild=rebuild))
    with pytest.raises(CloudConfigInvalid) as caught:
        load_cloud("prod-eu")
    assert [f.path for f in caught.value.errors] == [f"clouds.prod-eu.rebuild.{path}"]
    assert f"clouds.prod-eu.rebuild.{path}" in caught.value.message


def test_all_wrong_settings_are_listed_at_once(write: Write) -> None:
    write(lab=entry(rebuild={"write_rate": "x", "resend": "y"}))
    with pytest.raises(CloudConfigInvalid) as caught:
        load_cloud("lab")
    assert len(caught.value.errors) == 2


@pytest.mark.parametrize("rebuild", ["5/s", ["5/s"]])
def test_a_section_that_is_no_mapping_is_refused(write: Write, rebuild: object) -> None:
    write(lab=entry(rebuild=rebuild))
    with pytest.raises(CloudConfigInvalid, match=r"clouds\.lab\.rebuild: must be a mapping"):
        load_cloud("lab")


def test_settings_cant_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CloudSettings().marker = False  # type: ignore[misc]
