"""OpenAPI 3.1, made from the table of routes and the models that requests and answers really use."""

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.api.problems import CONTENT_TYPE
from orchestrator.api.requests import NoQuery
from orchestrator.api.routes import Route
from orchestrator.service.views import ProblemView

REF = "#/components/schemas/{model}"
ALWAYS = (401, 403, 500, 503)
"""Problems of every route that takes a token."""

Key = tuple[type[BaseModel], Literal["validation", "serialization"]]


def describe(routes: Sequence[Route], *, url: str) -> dict[str, Any]:
    """The document."""
    keys: list[Key] = [(ProblemView, "serialization")]
    for route in routes:
        keys += [(m, "serialization") for m in route.answers.values() if not isinstance(m, str)]
        keys += [(m, "validation") for m in (route.body, route.query) if m is not None and m is not NoQuery]
    schemas, definitions = models_json_schema(list(dict.fromkeys(keys)), ref_template=REF)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, definitions)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fleet rebuild", "version": _version(),
                 "description": "Rebuilds fleets of cloud servers onto a new image."},
        "servers": [{"url": url}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _operation(route: Route, schemas: Mapping[Any, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "responses": {}}
    parameters = [*_path_parameters(route.path), *_headers(route.headers)]
    if route.query is not NoQuery:
        parameters += _query(schemas[route.query, "validation"], definitions)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.name in ("submit_plan", "create_token", "resolve_job"),
            "content": {"application/json": {"schema": schemas[route.body, "validation"]}},
        }
    for status, shape in route.answers.items():
        operation["responses"][str(status)] = _answer(status, shape, schemas)
    for status in (*route.problems, *(() if route.public else ALWAYS)):
        operation["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {CONTENT_TYPE: {"schema": schemas[ProblemView, "serialization"]}},
        }
    if route.name == "list_events":
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    if route.public:
        operation["security"] = []
    return operation


def _answer(status: int, shape: type[BaseModel] | str, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(shape, str):
        kind = "object" if shape == "application/json" else "string"
        content = {shape: {"schema": {"type": kind}}}
    else:
        content = {"application/json": {"schema": schemas[shape, "serialization"]}}
    return {"description": HTTPStatus(status).phrase, "content": content}


def _path_parameters(path: str) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _headers(headers: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    for name, purpose in headers.items():
        yield {"name": name, "in": "header", "required": False, "description": purpose, "schema": {"type": "string"}}


def _query(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    model = definitions["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    for name, field in model["properties"].items():
        yield {"name": name, "in": "query", "required": False, "schema": field}


def _version() -> str:
    try:
        return version("fleet-rebuild")
    except PackageNotFoundError:
        return "0"
