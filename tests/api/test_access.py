"""Who may do what, and what everyone may see of the service itself."""

from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from orchestrator.api.keys import ApiConfig
from orchestrator.api.openapi import describe
from orchestrator.api.routes import ROUTES
from orchestrator.api.serve import serving
from orchestrator.ledger.engine import transaction
from orchestrator.service.sessions import COOKIE
from tests.api.conftest import OPENAPI, Api, plan_file, server_id

UNKNOWN = "01990000-0000-7000-8000-000000000000"


@pytest.mark.parametrize("route", [r for r in ROUTES if not r.public], ids=lambda r: r.name)
async def test_every_route_but_the_public_ones_needs_a_token(api: Api, route: Any) -> None:
    path = route.path.replace("{id}", UNKNOWN).replace("{server_id}", "x").replace("{name}", "x")
    path = path.replace("{phase}", "before")
    for headers in ({}, {"Authorization": "Bearer rbt_wrong"}, {"Authorization": "Basic eDp5"}):
        answer = await api.call(route.method, path, role="", headers=headers)
        assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_the_openapi_document_has_every_route_of_the_application_and_every_status_it_lists(api: Api) -> None:
    served = (await api.get("/openapi.json", role="")).json
    assert served["openapi"].startswith("3.1")
    assert served["paths"].keys() == OPENAPI["paths"].keys()
    assert sum(len(methods) for methods in served["paths"].values()) == len(ROUTES)
    operation = served["paths"]["/v1/plans"]["get"]
    assert {p["name"] for p in operation["parameters"]} == {"status", "label", "cloud", "limit", "cursor"}
    plan = served["components"]["schemas"]["PlanView"]
    assert {"id", "counts", "waves", "rate", "eta", "max_in_flight", "reason"} <= set(plan["required"])
    assert describe(ROUTES, url="http://rebuild.test/") == served


@pytest.mark.parametrize("role", ["viewer", "approver"])
async def test_those_who_only_look_or_approve_can_not_submit(api: Api, role: str) -> None:
    answer = await api.post("/v1/plans", plan_file(), role=role)
    assert (answer.status, answer.json["code"]) == (403, "not_allowed")
    assert (await api.get("/v1/plans", role=role)).status == 200


async def test_tokens_are_made_listed_and_revoked_by_admins_only(api: Api) -> None:
    body = {"name": "ci", "role": "submitter", "clouds": ["alpha"], "max_targets": 2}
    for role in ("viewer", "submitter", "operator", "approver"):
        assert (await api.post("/v1/tokens", body, role=role)).status == 403
        assert (await api.get("/v1/tokens", role=role)).status == 403
    made = await api.post("/v1/tokens", body)
    assert made.status == 201
    secret = made.json["token"]
    assert secret.startswith("rbt_")
    listed = await api.get("/v1/tokens")
    assert "ci" in {t["name"] for t in listed.json["items"]}
    assert secret.encode() not in listed.body
    async with api.engine.connect() as conn:
        rows = (await conn.execute(text("SELECT tokens::text FROM tokens"))).scalars().all()
    assert not any(secret in row for row in rows)
    mine = {"Authorization": f"Bearer {secret}"}
    assert (await api.get("/v1/plans", headers=mine)).status == 200
    assert (await api.call("DELETE", f"/v1/tokens/{made.json['id']}")).json["revoked_at"] is not None
    assert (await api.get("/v1/plans", headers=mine)).status == 401
    again = await api.post("/v1/tokens", body)
    assert (again.status, again.json["code"]) == (409, "name_taken")


@pytest.mark.parametrize(
    ("change", "path"),
    [({"role": "king"}, "role"), ({"name": ""}, "name"), ({"expires_at": "2020-01-01T00:00:00Z"}, "expires"),
     ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"), ({"more": 1}, "more"), ({"max_targets": 0}, "max_targets")],
)  # fmt: skip
async def test_a_faulty_token_is_refused(api: Api, change: dict[str, Any], path: str) -> None:
    answer = await api.post("/v1/tokens", {"name": "x", "role": "viewer", **change})
    assert answer.status == 422
    assert answer.json["errors"][0]["path"] == path


async def test_a_limited_token_sees_and_uses_its_clouds_and_no_more_servers_than_allowed(api: Api) -> None:
    other = (await api.post("/v1/plans", plan_file(cloud="beta"))).json
    made = (
        await api.post("/v1/tokens", {"name": "ci", "role": "submitter", "clouds": ["alpha"], "max_targets": 2})
    ).json
    mine = {"Authorization": f"Bearer {made['token']}"}
    assert (await api.post("/v1/plans", plan_file(cloud="beta"), headers=mine)).status == 403
    assert (await api.post("/v1/plans", plan_file(), headers=mine)).status == 403
    own = await api.post("/v1/plans", plan_file([server_id(0)]), headers=mine)
    assert own.status == 201
    assert [p["id"] for p in (await api.get("/v1/plans", headers=mine)).json["items"]] == [own.json["id"]]
    assert (await api.get(f"/v1/plans/{other['id']}", headers=mine)).status == 403
    assert (await api.get("/v1/plans", headers=mine, cloud="beta")).status == 403
    assert [c["name"] for c in (await api.get("/v1/clouds", headers=mine)).json["items"]] == ["alpha"]
    selecting = {**plan_file(), "targets": {"select": {"name": "*"}, "max": 500}}
    plan = (await api.post("/v1/plans", selecting, headers=mine)).json
    spec = (await api.get(f"/v1/plans/{plan['id']}/spec", headers=mine)).json
    assert spec["targets"]["max"] == 2, "what is selected later is held against the token's limit, too"


async def test_an_expired_token_is_refused(api: Api) -> None:
    made = (await api.post("/v1/tokens", {"name": "x", "role": "viewer", "expires_at": "2099-01-01T00:00:00Z"})).json
    async with transaction(api.engine) as conn:
        await conn.execute(text("UPDATE tokens SET expires_at = now() - interval '1 s' WHERE name = 'x'"))
    assert (await api.get("/v1/plans", headers={"Authorization": f"Bearer {made['token']}"})).status == 401


async def test_what_is_not_there_is_a_problem_document(api: Api) -> None:
    for path, code in (
        ("/v1/nothing", "not_found"),
        (f"/v1/plans/{UNKNOWN}", "not_found"),
        ("/v1/plans/x", "not_found"),
    ):
        answer = await api.get(path)
        assert (answer.status, answer.json["code"]) == (404, code)
    answer = await api.call("PUT", "/v1/plans")
    assert (answer.status, answer.json["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(",")) == {"GET", "POST"}


async def test_health_readiness_and_metrics_are_open(api: Api) -> None:
    assert (await api.get("/healthz", role="")).json == {"status": "ok"}
    ready = await api.get("/readyz", role="")
    assert (ready.status, ready.json) == (
        200, {"status": "ok", "database": "ok", "migrations": "ok", "broker": "ok"},
    )  # fmt: skip
    await api.post("/v1/plans", plan_file())
    metrics = (await api.get("/metrics", role="")).body.decode()
    assert 'rebuild_plans{status="preparing"} 1.0' in metrics
    assert 'rebuild_jobs{state="pending"} 3.0' in metrics
    assert 'rebuild_http_requests_total{method="POST",route="/v1/plans",status="201"} 1.0' in metrics


async def test_a_database_without_tables_is_not_ready(
    blank_database_url: str, redis_url: str, clouds_yaml: Any
) -> None:
    config = ApiConfig(database_url=blank_database_url, redis_url=redis_url, api_url="http://x")
    async with serving(config, "127.0.0.1:0") as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/readyz") as answer:
            assert (answer.status, (await answer.json())["migrations"]) == (503, "behind")
        async with session.get(f"{url}/v1/plans", headers={"Authorization": "Bearer x"}) as answer:
            assert answer.status == 500
            body = await answer.text()
            assert "Traceback" not in body
            assert "relation" not in body


async def test_a_database_that_is_away_is_a_503(redis_url: str, clouds_yaml: Any) -> None:
    config = ApiConfig(database_url="postgresql://u:p@127.0.0.1:1/x", redis_url=redis_url, api_url="http://x")
    async with serving(config, "127.0.0.1:0") as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/readyz") as answer:
            assert (answer.status, (await answer.json())["database"]) == (503, "away")
        async with session.get(f"{url}/v1/plans", headers={"Authorization": "Bearer x"}) as answer:
            assert (answer.status, (await answer.json())["code"]) == (503, "unavailable")
            assert answer.headers["Retry-After"]
        async with session.get(f"{url}/metrics") as answer:
            assert answer.status == 200


async def sign_in(api: Api, role: str) -> str:
    answer = await api.call(
        "POST", "/login", data=f"token={api.tokens[role]}".encode(), role="",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert api.tokens[role] not in cookie
    value: str = cookie.split(";")[0]
    return value


async def test_the_status_page_asks_for_a_token_and_then_shows_plans(api: Api) -> None:
    turned_away = await api.get("/", role="")
    assert (turned_away.status, turned_away.headers["Location"]) == (303, "/login")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong = await api.call("POST", "/login", data=b"token=rbt_x", role="", headers=form)
    assert wrong.status == 401
    plan = (await api.post("/v1/plans", plan_file(name="<script>alert(1)</script>"))).json
    cookie = {"Cookie": await sign_in(api, "viewer")}
    page = await api.get("/", role="", headers=cookie)
    assert page.status == 200
    assert b"&lt;script&gt;alert(1)" in page.body
    assert b"<script>alert" not in page.body
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    detail = await api.get(f"/plans/{plan['id']}", role="", headers=cookie)
    assert b"plan.preparing" in detail.body
    script = await api.get("/static/status.js", role="")
    assert script.status == 200
    assert "javascript" in script.headers["Content-Type"]


async def test_a_session_reads_the_interface_and_changes_nothing(api: Api) -> None:
    plan = (await api.post("/v1/plans", plan_file())).json
    cookie = {"Cookie": await sign_in(api, "admin")}
    assert (await api.get(f"/v1/plans/{plan['id']}", role="", headers=cookie)).status == 200
    assert (await api.post(f"/v1/plans/{plan['id']}/cancel", role="", headers=cookie)).status == 401
    assert (await api.post("/v1/plans", plan_file(), role="", headers=cookie)).status == 401


async def test_a_forged_or_ended_session_is_none(api: Api) -> None:
    value = (await sign_in(api, "viewer")).removeprefix(f"{COOKIE}=")
    token_id, end, mac = value.split(".")
    flipped = ("0" if mac[0] != "0" else "1") + mac[1:]
    for forged in (f"{token_id}.{int(end) + 1}.{mac}", f"{token_id}.{end}.{flipped}", f"{UNKNOWN}.{end}.{mac}", "x",
                   f"{token_id}.1.{mac}", f"{token_id}.{end}.\u00e9"):  # fmt: skip
        answer = await api.get("/v1/plans", role="", headers={"Cookie": f"{COOKIE}={forged}"})
        assert answer.status == 401, forged


async def test_another_site_can_not_sign_anyone_in(api: Api) -> None:
    answer = await api.call(
        "POST", "/login", data=f"token={api.tokens['viewer']}".encode(), role="",
        headers={"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "cross-site"},
    )  # fmt: skip
    assert answer.status == 403
    assert "Set-Cookie" not in answer.headers
