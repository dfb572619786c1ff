"""Signing in, versions, URLs and the forms of refusal that come before any handler."""

import pytest

from tests.clouds.contract.target import Api

AUTH_REQUIRED = "The request you have made requires authentication."


def _password(api: Api, **changes: str) -> dict[str, object]:
    auth = {**api.target.auth, **changes}
    domain = {"name": auth["user_domain_name"]}
    user = {"name": auth["username"], "password": auth["password"], "domain": domain}
    project = {"name": auth["project_name"], "domain": {"name": auth["project_domain_name"]}}
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": project}}}


async def test_a_password_gets_a_token_with_a_catalogue(api: Api) -> None:
    answer = await api("POST", f"{api.target.auth['auth_url']}/auth/tokens", _password(api), token=False, version=None)
    assert answer.status == 201
    assert answer.headers["X-Subject-Token"]
    token = answer.json["token"]
    assert token["project"]["id"] == api.target.project_id
    assert {"compute", "image", "identity"} <= {service["type"] for service in token["catalog"]}
    assert token["expires_at"].endswith(".000000Z")


async def test_a_token_gets_another_token_for_the_same_project(api: Api) -> None:
    scope = {"project": {"id": api.target.project_id}}
    body = {"auth": {"identity": {"methods": ["token"], "token": {"id": api.target.token}}, "scope": scope}}
    answer = await api("POST", f"{api.target.auth['auth_url']}/auth/tokens", body, token=False, version=None)
    assert answer.status == 201
    assert answer.json["token"]["project"]["id"] == api.target.project_id


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"username": "nobody"}, {"project_name": "nowhere"}])
async def test_a_wrong_sign_in_is_401_and_does_not_say_what_was_wrong(api: Api, changes: dict[str, str]) -> None:
    url = f"{api.target.auth['auth_url']}/auth/tokens"
    answer = await api("POST", url, _password(api, **changes), token=False, version=None)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith('Keystone uri="http')
    assert answer.json == {"error": {"code": 401, "message": AUTH_REQUIRED, "title": "Unauthorized"}}


async def test_an_unknown_application_credential_is_404(api: Api) -> None:
    credential = {"id": "0" * 32, "secret": "x"}
    body = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": credential}}}
    answer = await api("POST", f"{api.target.auth['auth_url']}/auth/tokens", body, token=False, version=None)
    assert answer.status == 404
    assert answer.json["error"]["message"] == f"Could not find Application Credential: {'0' * 32}."


async def test_a_sign_in_without_auth_is_400(api: Api) -> None:
    answer = await api("POST", f"{api.target.auth['auth_url']}/auth/tokens", {}, token=False, version=None)
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("Expecting to find auth in request body. ")


async def test_keystone_says_its_version_without_a_token(api: Api) -> None:
    answer = await api("GET", str(api.target.auth["auth_url"]), token=False, version=None)
    assert answer.status == 200
    assert answer.json["version"]["id"].startswith("v3.")
    assert answer.json["version"]["status"] == "stable"


def _compute_root(api: Api) -> str:
    return api.target.compute.rsplit("/v2.1", 1)[0]


async def test_nova_says_its_versions_without_a_token(api: Api) -> None:
    many = await api("GET", f"{_compute_root(api)}/", token=False, version=None)
    assert many.status == 200
    assert [v["id"] for v in many.json["versions"]] == ["v2.0", "v2.1"]
    one = await api("GET", f"{_compute_root(api)}/v2.1/", token=False, version=None)
    assert one.status == 200
    assert one.json["version"]["min_version"] == "2.1"
    assert one.json["version"]["version"] == many.json["versions"][1]["version"]


async def test_glance_says_its_versions_without_a_token(api: Api) -> None:
    answer = await api("GET", f"{api.target.image}/", token=False, version=None)
    assert answer.status == 300
    assert "v2.0" in [v["id"] for v in answer.json["versions"]]


async def _most(api: Api) -> str:
    answer = await api("GET", f"{_compute_root(api)}/v2.1/", token=False, version=None)
    return str(answer.json["version"]["version"])


@pytest.mark.parametrize(
    ("sent", "granted"),
    [
        ({}, "2.1"),
        ({"OpenStack-API-Version": "compute 2.73"}, "2.73"),
        ({"OpenStack-API-Version": "volume 3.0"}, "2.1"),
        ({"X-OpenStack-Nova-API-Version": "2.60"}, "2.60"),
        ({"OpenStack-API-Version": "compute latest"}, None),
    ],
)
async def test_the_microversion_of_the_answer_is_in_its_headers(
    api: Api, sent: dict[str, str], granted: str | None
) -> None:
    answer = await api("GET", "/servers?limit=1", version=None, headers=sent)
    wanted = granted or await _most(api)
    assert answer.headers["OpenStack-API-Version"] == f"compute {wanted}"
    assert answer.headers["X-OpenStack-Nova-API-Version"] == wanted
    assert "OpenStack-API-Version" in ",".join(v for k, v in answer.headers.items() if k.lower() == "vary")


async def test_a_microversion_beyond_the_clouds_is_406(api: Api) -> None:
    answer = await api("GET", "/servers?limit=1", version="2.999")
    message = f"Version 2.999 is not supported by the API. Minimum is 2.1 and maximum is {await _most(api)}."
    assert answer.refusal == (406, "computeFault", message)


async def test_a_microversion_that_is_none_is_400(api: Api) -> None:
    answer = await api("GET", "/servers?limit=1", version="x")
    message = "API Version String x is of invalid format. Must be of format MajorNum.MinorNum."
    assert answer.refusal == (400, "badRequest", message)


@pytest.mark.parametrize("headers", [{}, {"X-Auth-Token": "made-up"}])
async def test_nova_without_a_good_token_is_401_in_keystones_form(api: Api, headers: dict[str, str]) -> None:
    answer = await api("GET", "/servers?limit=1", token=False, headers=headers)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith('Keystone uri="http')
    assert answer.json == {"error": {"code": 401, "title": "Unauthorized", "message": AUTH_REQUIRED}}
    assert "OpenStack-API-Version" not in answer.headers


async def test_glance_without_a_good_token_is_401(api: Api) -> None:
    answer = await api("GET", f"{api.target.image}/v2/images", token=False, version=None)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"].startswith('Keystone uri="http')


async def test_another_projects_id_in_the_url_is_400(api: Api) -> None:
    other = "0" * 32
    answer = await api("GET", f"{_compute_root(api)}/v2.1/{other}/servers")
    message = (
        f"Malformed request URL: URL's project_id '{other}' doesn't match Context's project_id "
        f"'{api.target.project_id}'"
    )
    assert answer.refusal == (400, "badRequest", message)


async def test_no_projects_id_in_the_url_works(api: Api) -> None:
    answer = await api("GET", f"{_compute_root(api)}/v2.1/servers?limit=1")
    assert answer.status == 200
    (server,) = answer.json["servers"]
    assert server["links"][0]["href"] == f"{_compute_root(api)}/v2.1/servers/{server['id']}"


@pytest.mark.parametrize("path", ["/v2.1/nonsense/servers", "/v2.1/{project}/nonsense", "/v2.1/nonsense"])
async def test_an_unknown_path_is_404_in_html(api: Api, path: str) -> None:
    answer = await api("GET", _compute_root(api) + path.replace("{project}", api.target.project_id))
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "The resource could not be found." in answer.text


async def test_an_unknown_verb_is_404_in_html(api: Api) -> None:
    answer = await api("PATCH", "/servers/x", {})
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/html")


async def test_both_request_ids_of_an_answer_are_the_same_and_novas_own(api: Api) -> None:
    sent = "req-00000000-0000-4000-8000-000000000000"
    answer = await api("GET", "/servers?limit=1", headers={"X-OpenStack-Request-ID": sent})
    assert answer.request_id.startswith("req-")
    assert answer.request_id == answer.headers["x-compute-request-id"]
    assert answer.request_id != sent


async def test_images_are_found_by_id_and_by_name(api: Api, images: list[str]) -> None:
    one = await api("GET", f"{api.target.image}/v2/images/{images[0]}", version=None)
    assert one.status == 200
    assert {"id", "name", "status", "min_disk", "min_ram", "visibility"} <= one.json.keys()
    named = await api("GET", f"{api.target.image}/v2/images?name={one.json['name']}", version=None)
    assert images[0] in [i["id"] for i in named.json["images"]]
    assert {i["name"] for i in named.json["images"]} == {one.json["name"]}


async def test_an_unknown_image_is_404_in_html(api: Api) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    answer = await api("GET", f"{api.target.image}/v2/images/{unknown}", version=None)
    assert answer.status == 404
    assert f"No image found with ID {unknown}" in answer.text


async def test_pages_of_images_are_linked_by_next_below_the_endpoint(api: Api) -> None:
    seen: list[str] = []
    path: str | None = "/v2/images?limit=1"
    while path:
        page = (await api("GET", api.target.image + path, version=None)).json
        seen += [i["id"] for i in page["images"]]
        path = page.get("next")
        assert path is None or path.startswith("/v2/images?limit=1&marker=")
    whole = (await api("GET", f"{api.target.image}/v2/images?limit=100", version=None)).json
    assert seen == [i["id"] for i in whole["images"]]
