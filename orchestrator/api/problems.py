"""Errors as RFC 9457 problem documents."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from orchestrator.errors import (
    CloudError,
    Conflict,
    IdempotencyKeyReused,
    NotAllowed,
    NotFound,
    RebuildError,
    SpecInvalid,
    Unauthenticated,
    Unavailable,
)
from orchestrator.service.errors import BodyUnreadable, NotSupportedYet, RequestInvalid
from orchestrator.service.views import FaultView, ProblemView

CONTENT_TYPE = "application/problem+json"

STATUSES: dict[type[RebuildError], int] = {
    SpecInvalid: 422,
    RequestInvalid: 422,
    IdempotencyKeyReused: 422,
    NotSupportedYet: 422,
    BodyUnreadable: 400,
    Unauthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    Conflict: 409,
    Unavailable: 503,
    CloudError: 503,
}
"""The most special class that an error is of decides."""

HTTP_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def status_of(error: RebuildError) -> int:
    """The HTTP status of an error; 500 for one that no answer was meant for."""
    return next((STATUSES[c] for c in type(error).__mro__ if c in STATUSES), 500)


def problem_of(error: RebuildError) -> web.Response:
    """The problem of an error, with its faults."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="rebuild"'
    if status == 503:
        headers["Retry-After"] = "2"
    faults = [FaultView(path=f.path, code=f.code, message=f.message) for f in error.errors]
    return problem(status, error.reason_code, error.message, errors=faults, headers=headers)


def problem(
    status: int, code: str, detail: str, *, errors: list[FaultView] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:  # fmt: skip
    """A problem document. Its type is a URN, since nothing is promised to stand at an address."""
    document = ProblemView(
        type=f"urn:fleet-rebuild:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail,
        code=code, errors=errors or [],
    )  # fmt: skip
    return web.Response(
        status=status, body=json.dumps(document.model_dump()).encode(), content_type=CONTENT_TYPE, headers=headers
    )
