"""Every kind of answer to the rebuild call, as seen from a real Nova and from gateways, and what it proves."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict

from orchestrator.clouds.answers import MESSAGE_LIMIT, TABLE, classify, retry_after
from orchestrator.clouds.protocol import Cause, Effect

SID = "80eaeaa4-5441-4574-9e7c-363513d1c508"
APPLIED, NO, OPEN = Effect.APPLIED, Effect.NOT_APPLIED, Effect.UNKNOWN
REBUILD = "Invalid input for field/attribute rebuild. Value: {'adminPass': 'hunter2', 'colour': 1}."
DATE = "Mon, 23 Nov 2026 10:00:00 GMT"


def nova(key: str, code: int, message: str) -> dict[str, Any]:
    return {key: {"code": code, "message": message}}


ROWS: list[tuple[str, int, Any, Effect, Cause]] = [
    ("accepted", 202, {"server": {"id": SID, "status": "REBUILD"}}, APPLIED, Cause.ACCEPTED),
    ("accepted, id in capitals", 202, {"server": {"id": SID.upper(), "status": "REBUILD"}}, APPLIED, Cause.ACCEPTED),
    ("202 about another server", 202, {"server": {"id": "other", "status": "REBUILD"}}, OPEN, Cause.UNREADABLE),
    ("202 of HTML", 202, b"<html>ok</html>", OPEN, Cause.UNREADABLE),
    ("202 cut short", 202, b'{"server": {"id": "80ea', OPEN, Cause.UNREADABLE),
    ("202 without a server", 202, {"job_id": "1"}, OPEN, Cause.UNREADABLE),
    ("202 of a list", 202, b"[]", OPEN, Cause.UNREADABLE),
    ("202 with nothing", 202, b"", OPEN, Cause.UNREADABLE),
    ("202 that is a throttle", 202, {"error": {"code": "Common.0024", "message": "x"}}, OPEN, Cause.UNREADABLE),
    ("200", 200, {"server": {"id": SID, "status": "ACTIVE"}}, OPEN, Cause.UNREADABLE),
    ("204", 204, b"", OPEN, Cause.UNREADABLE),
    ("a redirect", 302, b"<html>login</html>", OPEN, Cause.UNREADABLE),
    ("a redirect that keeps the method", 307, b"", OPEN, Cause.UNREADABLE),
    ("image not found", 400, nova("badRequest", 400, "Cannot find image for rebuild"), NO, Cause.BAD_REQUEST),
    ("image not active", 400, nova("badRequest", 400, "Image IMG is not active."), NO, Cause.BAD_REQUEST),
    ("other project's URL", 400, nova("badRequest", 400, "Malformed request URL: …"), NO, Cause.BAD_REQUEST),
    ("400 of a gateway", 400, b"<html>Bad request</html>", NO, Cause.BAD_REQUEST),
    ("Huawei's backend timed out", 400, {"error": {"code": "Ecs.1002", "message": "x"}}, OPEN, Cause.SERVER_ERROR),
    ("Huawei's unknown error", 400, {"error": {"code": "Ecs.0000", "message": "x"}}, OPEN, Cause.SERVER_ERROR),
    ("Huawei's bad parameter", 400, {"error": {"code": "Ecs.0005", "message": "x"}}, NO, Cause.BAD_REQUEST),
    ("token refused", 401, {"error": {"code": 401, "title": "Unauthorized", "message": "x"}}, NO, Cause.TOKEN),
    ("policy", 403, nova("forbidden", 403, "Policy doesn't allow …"), NO, Cause.FORBIDDEN),
    ("quota", 403, nova("forbidden", 403, "Maximum number of metadata items exceeds 128"), NO, Cause.FORBIDDEN),
    ("no such server", 404, nova("itemNotFound", 404, f"Instance {SID} could not be found."), NO, Cause.NOT_FOUND),
    ("wrong path", 404, b"<html><h1>404 Not Found</h1></html>", NO, Cause.MOVED),
    ("gone from here", 410, b"<html><h1>410 Gone</h1></html>", NO, Cause.MOVED),
    ("unknown microversion", 406, nova("computeFault", 406, "Version 2.999 is not …"), NO, Cause.BAD_REQUEST),
    ("406 of something else", 406, b"", OPEN, Cause.UNREADABLE),
    ("405", 405, b"", OPEN, Cause.UNREADABLE),
    ("408 of a gateway", 408, b"", OPEN, Cause.UNREADABLE),
    ("busy rebuilding", 409, nova("conflictingRequest", 409, f"Cannot 'rebuild' instance {SID} while it is in task_state rebuilding"), NO, Cause.BUSY),  # noqa: E501
    ("paused", 409, nova("conflictingRequest", 409, f"Cannot 'rebuild' instance {SID} while it is in vm_state paused"), NO, Cause.WRONG_STATE),  # noqa: E501
    ("locked", 409, nova("conflictingRequest", 409, f"Instance {SID} is locked"), NO, Cause.LOCKED),
    ("another conflict", 409, nova("conflictingRequest", 409, "Something else"), NO, Cause.BUSY),
    ("409 of a gateway", 409, b"conflict", NO, Cause.BUSY),
    ("body too large", 413, b"<html>Request is too large.</html>", NO, Cause.BAD_REQUEST),
    ("over a limit, old form", 413, nova("overLimit", 413, "This request was rate-limited."), NO, Cause.THROTTLED),
    ("too many requests", 429, nova("overLimit", 429, "slow"), NO, Cause.THROTTLED),
    ("too many requests of a gateway", 429, b"<html>slow down</html>", NO, Cause.THROTTLED),
    ("Huawei's gateway", 429, {"error_code": "APIGW.0308", "error_msg": "limit:60,time:1 minute"}, NO, Cause.THROTTLED),
    ("the loser of two POSTs", 500, nova("computeFault", 500, "Unexpected API Error. <class 'nova.exception.UnexpectedTaskStateError'>"), OPEN, Cause.SERVER_ERROR),  # noqa: E501
    ("Glance down", 500, nova("computeFault", 500, "<class 'nova.exception.GlanceConnectionFailed'>"), OPEN, Cause.SERVER_ERROR),  # noqa: E501
    ("502 of a gateway", 502, b"<html>Bad Gateway</html>", OPEN, Cause.SERVER_ERROR),
    ("Keystone down", 503, b"<html>The Keystone service is temporarily unavailable.</html>", OPEN, Cause.SERVER_ERROR),
    ("503 that is a throttle", 503, nova("overLimit", 503, "slow"), NO, Cause.THROTTLED),
    ("504 of a gateway", 504, {"error_code": "APIGW.0201", "error_msg": "x"}, OPEN, Cause.SERVER_ERROR),
    ("a status nobody knows", 799, b"", OPEN, Cause.UNREADABLE),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "effect", "cause"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_an_answer_proves_what_the_facts_say(status: int, body: Any, effect: Effect, cause: Cause) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = classify(status, CIMultiDict({"X-Openstack-Request-Id": "req-1"}), raw, server_id=SID)
    assert (answer.effect, answer.cause) == (effect, cause)
    assert (answer.http_status, answer.request_id) == (status, "req-1")
    assert (answer.server is not None) == (effect is APPLIED)
    assert answer.message or effect is APPLIED


def test_every_row_of_the_table_is_met_by_a_case() -> None:
    met = set()
    for _, status, body, _, _ in ROWS:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        key = next(iter(json.loads(raw)), "") if raw.startswith(b"{") and raw.endswith(b"}") else ""
        inner: Any = json.loads(raw)[key] if key else ""
        message = inner.get("message", "") if isinstance(inner, dict) else ""
        name = inner["code"] if key == "error" and isinstance(inner["code"], str) else key
        met.add(next(i for i, row in enumerate(TABLE) if row.fits(status, name, message)))
    assert met == set(range(len(TABLE)))


def test_only_a_readable_202_counts_as_applied() -> None:
    for status in range(100, 1000):
        for body in (b"", b"{}", b'{"server": {"id": "x", "status": "REBUILD"}}'):
            answer = classify(status, CIMultiDict(), body, server_id="x")
            assert (answer.effect is APPLIED) == (status == 202 and b"server" in body)
            if status >= 500 or status < 400:
                assert answer.effect is not NO


def test_the_servers_secrets_of_a_202_are_not_kept() -> None:
    body = {"server": {"id": SID, "status": "REBUILD", "adminPass": "hunter2", "user_data": "aHVudGVyMg=="}}
    answer = classify(202, CIMultiDict(), json.dumps(body).encode(), server_id=SID)
    assert "hunter2" not in repr(answer)
    assert "aHVudGVyMg" not in repr(answer)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (f"{REBUILD} Additional properties are not allowed ('colour' was unexpected)", "('colour' was unexpected)"),
        (f"{REBUILD} 'imageRef' is a required property", "'imageRef' is a required property"),
        (
            "Invalid input for field/attribute user_data. Value: hunter2. 'hunter2' is not a 'base64'",
            "The value is not a 'base64'",
        ),
        ("Invalid input for field/attribute x. Value: hunter2. hunter2 is odd in an unknown way", "not shown"),
    ],
)
def test_what_nova_repeats_of_the_request_is_cut_out(message: str, kept: str) -> None:
    answer = classify(400, CIMultiDict(), json.dumps(nova("badRequest", 400, message)).encode())
    assert "hunter2" not in answer.message
    assert answer.message.startswith("Invalid input for field/attribute")
    assert kept in answer.message


def test_known_secrets_are_cut_out_of_any_message() -> None:
    answer = classify(502, CIMultiDict(), b"<html>while sending hunter2</html>", secrets=["hunter2"])
    assert answer.message == "while sending ***"


def test_messages_are_short_and_plain() -> None:
    long = classify(500, CIMultiDict(), json.dumps(nova("computeFault", 500, "x" * 5000)).encode())
    assert len(long.message) == MESSAGE_LIMIT
    page = classify(502, CIMultiDict(), b"<html><head><style>b{}</style></head><h1>Bad\nGateway</h1></html>")
    assert page.message == "Bad Gateway"
    webob = {"message": "Request is too large.<br /><br />\n\n\n", "code": "413 Too Large", "title": "Too Large"}
    large = classify(413, CIMultiDict(), json.dumps(webob).encode())
    assert large.message == "The request is too large for the cloud. Request is too large."


def test_a_404_of_a_wrong_path_says_so() -> None:
    assert "its path is wrong" in classify(404, CIMultiDict(), b"<html>404 Not Found</html>").message
    real = classify(
        404, CIMultiDict(), json.dumps(nova("itemNotFound", 404, "Instance x could not be found.")).encode()
    )
    assert real.message == "Instance x could not be found."


def test_times_come_from_the_answer_or_else_from_the_callers_clock() -> None:
    given, otherwise = datetime(2026, 11, 23, 10, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert classify(500, CIMultiDict({"Date": DATE}), b"", otherwise=otherwise).date == given
    assert classify(500, CIMultiDict(), b"", otherwise=otherwise).date == otherwise
    assert classify(202, CIMultiDict({"date": DATE}), b"").date == given


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"Retry-After": "Mon, 23 Nov 2026 10:01:30 GMT", "Date": DATE}, 90.0),
        ({"Retry-After": "Mon, 23 Nov 2026 09:00:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Mon, 23 Nov 2026 10:01:30 GMT"}, None),
        ({"Retry-After": "99999999"}, 3600.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_time_by_the_clouds_clock(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(CIMultiDict(headers)) == seconds


def test_a_throttle_can_say_how_long_in_its_body() -> None:
    body = {"overLimit": {"code": 413, "message": "slow", "retryAfter": "12"}}
    assert classify(413, CIMultiDict(), json.dumps(body).encode()).retry_after == 12.0


def test_a_request_id_that_could_not_be_one_is_left_out() -> None:
    assert classify(500, CIMultiDict({"x-openstack-request-id": "a/../b"}), b"").request_id is None
    assert classify(500, CIMultiDict({"x-compute-request-id": "req-2"}), b"").request_id == "req-2"
