"""The real application over HTTP, on a real PostgreSQL and Valkey; each JSON answer is held against the OpenAPI."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.api.keys import ApiConfig
from orchestrator.api.openapi import describe
from orchestrator.api.routes import ROUTES
from orchestrator.api.serve import serving
from orchestrator.ledger.engine import open_engine
from orchestrator.service.roles import Role
from orchestrator.service.tokens import create_token

CLOUDS = """
clouds:
  alpha: {auth: {auth_url: "http://127.0.0.1:1/v3", username: u, password: p, project_name: x,
                 user_domain_name: d, project_domain_name: d}, region_name: one, rebuild: {write_rate: 4/s}}
  beta: {auth: {auth_url: "http://127.0.0.1:1/v3", username: u, password: p, project_name: y,
                user_domain_name: d, project_domain_name: d}, region_name: one}
"""
OPENAPI = describe(ROUTES, url="http://test")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(kw_only=True)
class Api:
    """A client that checks each JSON answer of the interface against its schema."""

    url: str
    engine: AsyncEngine
    session: aiohttp.ClientSession
    tokens: dict[str, str] = field(default_factory=dict)

    async def call(
        self, method: str, path: str, body: Any = None, *, role: str = "admin", data: bytes | None = None,
        headers: dict[str, str] | None = None, **params: Any,
    ) -> Answer:  # fmt: skip
        given = dict(headers or {})
        if role and "Authorization" not in given:
            given["Authorization"] = f"Bearer {self.tokens[role]}"
        payload = data if data is not None else (None if body is None else json.dumps(body).encode())
        if payload is not None:
            given.setdefault("Content-Type", "application/json")
        async with self.session.request(
            method, self.url + path, data=payload, headers=given, params=params, allow_redirects=False
        ) as response:
            answer = Answer(status=response.status, headers=response.headers, body=await response.read())
        check_answer(method, path, answer)
        return answer

    async def get(self, path: str, *, role: str = "admin", **params: Any) -> Answer:
        return await self.call("GET", path, role=role, **params)

    async def post(self, path: str, body: Any = None, *, role: str = "admin", **more: Any) -> Answer:
        return await self.call("POST", path, body, role=role, **more)


def check_answer(method: str, path: str, answer: Answer) -> None:
    """Fails where an answer isn't what the OpenAPI document says of its route."""
    kind = answer.headers.get("Content-Type", "").split(";")[0]
    if kind == "application/problem+json":
        schema: dict[str, Any] = {"$ref": "#/components/schemas/ProblemView"}
        assert answer.json["status"] == answer.status
    elif kind == "application/json":
        route = next(r for r in sorted(OPENAPI["paths"], key=lambda r: "{" in r) if _matches(r, path))
        responses = OPENAPI["paths"][route][method.lower()]["responses"]
        assert str(answer.status) in responses, f"{method} {route} answers {answer.status}, which OpenAPI lacks"
        schema = responses[str(answer.status)]["content"][kind]["schema"]
    else:
        return
    jsonschema.validate(
        answer.json, {**schema, "components": OPENAPI["components"]}, cls=jsonschema.Draft202012Validator,
        format_checker=jsonschema.FormatChecker(),
    )  # fmt: skip


def _matches(route: str, path: str) -> bool:
    pattern, parts = route.split("/"), path.split("?", maxsplit=1)[0].split("/")
    return len(pattern) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(pattern, parts, strict=True))


@pytest.fixture
def clouds_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "clouds.yaml"
    path.write_text(CLOUDS)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    for name in ("OS_CLOUD", "OS_AUTH_URL", "OS_REGION_NAME"):
        monkeypatch.delenv(name, raising=False)
    return path


@asynccontextmanager
async def running_api(database_url: str, redis_url: str, **config: Any) -> AsyncIterator[Api]:
    """The API as `rebuildctl serve` runs it, with one token for each role, named like it."""
    api_config = ApiConfig(database_url=database_url, redis_url=redis_url, api_url="http://rebuild.test/", **config)
    async with (
        open_engine(database_url, name="test", pool_size=5) as engine,
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        serving(api_config, "127.0.0.1:0") as url,
    ):
        api = Api(url=url, engine=engine, session=session)
        for role in Role:
            _, secret = await create_token(engine, role.value, role, created_by="test")
            api.tokens[role.value] = secret
        yield api


@pytest.fixture
async def api(database_url: str, redis_url: str, clouds_yaml: Path) -> AsyncIterator[Api]:
    async with running_api(database_url, redis_url, heartbeat_seconds=0.3) as running:
        yield running


def plan_file(servers: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A small plan; `servers` are ids."""
    named = [server_id(i) for i in range(3)] if servers is None else servers
    return {
        "name": "web tier",
        "cloud": "alpha",
        "image": "3ed456f5-3d8f-4383-a6c9-312032afcd1a",
        "targets": {"servers": named},
        **changes,
    }


def server_id(i: int) -> str:
    return f"00000000-0000-4000-8000-{i:012d}"
