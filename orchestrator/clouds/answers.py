"""What each answer to the rebuild call proves: one table, read from the top, the first row that fits decides.

Sources: Nova's code and a real Nova (its refusals are checked before anything is begun, so a 4xx of Nova is proof);
a 5xx can be given by Nova after the rebuild was sent off, and by a gateway in front of it at any time.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.clouds.parse import parse_http_date, parse_object, parse_server, plain
from orchestrator.clouds.protocol import Answer, Cause, Effect
from orchestrator.errors import CloudAnswerInvalid

MESSAGE_LIMIT = 500
MAX_RETRY_AFTER = 3600.0
"""Seconds; a longer Retry-After is taken for a mistake."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of answer. Empty fields match everything."""

    status: range
    key: str = ""
    """The error's own name: Nova's top-level key, or the code of a gateway's or Huawei's error."""
    says: str = ""
    """A pattern found in the message."""
    effect: Effect
    cause: Cause
    remark: str = ""
    """Said to the operator before the cloud's own words."""

    def fits(self, status: int, key: str, message: str) -> bool:
        """Whether the answer is of this kind."""
        return (
            status in self.status
            and (not self.key or re.fullmatch(self.key, key) is not None)
            and (not self.says or re.search(self.says, message) is not None)
        )


def _row(status: int | range, effect: Effect, cause: Cause, *, key: str = "", says: str = "", remark: str = "") -> Row:
    statuses = range(status, status + 1) if isinstance(status, int) else status
    return Row(status=statuses, key=key, says=says, effect=effect, cause=cause, remark=remark)


_NO, _OPEN = Effect.NOT_APPLIED, Effect.UNKNOWN

TABLE: tuple[Row, ...] = (
    # A token that is unknown, expired or revoked: answered before Nova sees the call.
    _row(401, _NO, Cause.TOKEN),
    # A gateway's throttle; Nova itself limits no rates.
    _row(429, _NO, Cause.THROTTLED),
    _row(413, _NO, Cause.THROTTLED, key="overLimit"),
    _row(503, _NO, Cause.THROTTLED, key="overLimit"),
    # Huawei: a 400 of these codes is a failure behind the API, not a refusal of the call.
    _row(400, _OPEN, Cause.SERVER_ERROR, key=r"Ecs\.(1002|0000|0002)"),
    _row(400, _NO, Cause.BAD_REQUEST),
    _row(413, _NO, Cause.BAD_REQUEST, remark="The request is too large for the cloud."),
    _row(406, _NO, Cause.BAD_REQUEST, key="computeFault"),
    _row(403, _NO, Cause.FORBIDDEN),
    _row(404, _NO, Cause.NOT_FOUND, key="itemNotFound"),
    # Whoever says so is not Nova: its endpoint has moved, or the catalogue's path is wrong. Nova was not asked.
    _row(404, _NO, Cause.MOVED, remark="Not Nova's own 404: the compute service has moved, or its path is wrong."),
    _row(410, _NO, Cause.MOVED, remark="The compute service is gone from here."),
    # Nova's 409s have one form; only the message tells them apart.
    _row(409, _NO, Cause.LOCKED, says=r"\bis locked\b"),
    _row(409, _NO, Cause.BUSY, says=r"\bin task_state\b"),
    _row(409, _NO, Cause.WRONG_STATE, says=r"\bin vm_state\b"),
    # Another 409 is still none of ours; like "busy" it is read back before anything else.
    _row(409, _NO, Cause.BUSY),
    # 500 also for the loser of two POSTs at once, with Neutron or Glance down, and after the rebuild was sent off;
    # 503 also for "Keystone service is temporarily unavailable". By themselves they prove nothing.
    _row(range(500, 600), _OPEN, Cause.SERVER_ERROR),
    _row(range(300, 400), _OPEN, Cause.UNREADABLE, remark="A redirect; it was not followed."),
    _row(range(100, 1000), _OPEN, Cause.UNREADABLE),
)


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    server_id: str | None = None,
    secrets: Iterable[str] = (),
    otherwise: datetime | None = None,
) -> Answer:
    """The classified answer. `headers` must ignore case; `server_id`: the server that a 202 must be about;
    `secrets`: texts that the message must not repeat; `otherwise`: the cloud's time for an answer without a `Date`.
    """
    date = _time(headers.get("Date")) or otherwise
    if status == 202:
        return _accepted(headers, body, server_id, date)
    key, message, _ = _error_of(body)
    row = next(row for row in TABLE if row.fits(status, key, message))
    said = withheld(" ".join(part for part in (row.remark, message or f"HTTP {status} without a message") if part))
    for secret in secrets:
        said = said.replace(secret, "***")
    slow_down = slow_down_of(headers, body, otherwise=otherwise)
    return Answer(
        effect=row.effect,
        cause=row.cause,
        http_status=status,
        request_id=request_id(headers),
        date=date,
        message=said[:MESSAGE_LIMIT],
        retry_after=slow_down.retry_after,
        allowed_rate=slow_down.allowed_rate if row.cause is Cause.THROTTLED else None,
    )


def _accepted(headers: Mapping[str, str], body: bytes, server_id: str | None, date: datetime | None) -> Answer:
    effect, cause, server, message = Effect.APPLIED, Cause.ACCEPTED, None, ""
    try:
        value = json.loads(body)
        server = parse_server(parse_object(value if isinstance(value, Mapping) else {}, "server"))
    except (ValueError, RecursionError, OverflowError, CloudAnswerInvalid):
        effect, cause, message = Effect.UNKNOWN, Cause.UNREADABLE, "A 202 whose body is not a server."
    else:
        if server_id is not None and server.id.lower() != server_id.lower():
            effect, cause, server = Effect.UNKNOWN, Cause.UNREADABLE, None
            message = "A 202 about another server."
    return Answer(
        effect=effect,
        cause=cause,
        http_status=202,
        request_id=request_id(headers),
        date=date,
        message=message,
        server=server,
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """The cloud's own id of the request, by which its instance action is found (nova-facts 1, 6)."""
    for name in ("x-openstack-request-id", "x-compute-request-id"):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"[\w.:-]{1,128}", value):
            return value
    return None


@dataclass(frozen=True, kw_only=True)
class SlowDown:
    """What an answer says about when, and how often, to call again."""

    retry_after: float | None
    """Seconds."""
    allowed_rate: float | None
    """Calls per second."""


_LIMIT = re.compile(
    r"\blimit:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*,\s*time:\s*([0-9]{1,6})?\s*(second|minute|hour|day)s?\b", re.I
)
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


def slow_down_of(headers: Mapping[str, str], body: bytes, *, otherwise: datetime | None = None) -> SlowDown:
    """`Retry-After`, else the error's own `retryAfter` (Nova's `overLimit`), else what Huawei's "limit:10,time:1
    minute" comes to: the time of one call, at least a second and at most the window.
    """
    _, message, in_body = _error_of(body)
    wait = retry_after(headers, otherwise=otherwise)
    wait = in_body if wait is None else wait
    found = _LIMIT.search(message)
    limit, window = (float(found[1]), int(found[2] or 1) * _SECONDS[found[3].lower()]) if found else (0.0, 0.0)
    if not limit or not window:
        return SlowDown(retry_after=wait, allowed_rate=None)
    if wait is None:
        wait = min(window, max(1.0, window / limit), MAX_RETRY_AFTER)
    return SlowDown(retry_after=wait, allowed_rate=limit / window)


def retry_after(headers: Mapping[str, str], *, otherwise: datetime | None = None) -> float | None:
    """Seconds of `Retry-After`, given as seconds or as a time (held against the answer's own `Date`, or against
    `otherwise`; with neither it says nothing). None for what can't be meant."""
    value = headers.get("Retry-After", "").strip()
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    at, now = _time(value), _time(headers.get("Date")) or otherwise
    if at is None or now is None:
        return None
    return min(max(0.0, (at - now).total_seconds()), MAX_RETRY_AFTER)


def error_message(body: bytes) -> str:
    """The message of an error's body, trimmed, without what it repeats of the request."""
    return withheld(_error_of(body)[1])[:MESSAGE_LIMIT]


def error_key(body: bytes) -> str:
    """The error's own name: `itemNotFound`, `overLimit`, `APIGW.0308`; empty where it has none."""
    return _error_of(body)[0]


def _error_of(body: bytes) -> tuple[str, str, float | None]:
    """An error's name, message and own retryAfter, whichever of the usual shapes it has (cloud-api-facts 5)."""
    text = body[: 64 * 1024].decode("utf-8", "replace")
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return "", plain(text), None
    if not isinstance(value, Mapping):
        return "", "", None
    if "error_code" in value:
        return str(value["error_code"]), str(value.get("error_msg") or ""), None
    for key, inner in value.items():
        if isinstance(inner, Mapping) and ("message" in inner or "code" in inner):
            code = inner.get("code")
            name = str(code) if key == "error" and isinstance(code, str) else str(key)
            return name, " ".join(str(inner.get("message") or "").split()), _seconds(inner.get("retryAfter"))
    return "", plain(str(value.get("message") or value.get("error_msg") or "")), None


def _seconds(value: object) -> float | None:
    text = str(value).strip()
    return min(float(text), MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) else None


def _time(value: str | None) -> datetime | None:
    try:
        return parse_http_date(value)
    except OverflowError:  # year 1, east of Greenwich
        return None


_REASONS = re.compile(
    r"(Additional properties are not allowed \([^()]*\)|'[\w:.-]+' is a required property|is not of type '[\w', ]+'"
    r"|is too (long|short)|is not a '[\w-]+'|is not one of \[[^\[\]]*\]|does not match any of the regexes: '.*'"
    r"|does not match '.*'|is not valid under any of the given schemas)\.?$"
)


def withheld(message: str) -> str:
    """The message without the request's own values, which Nova repeats in a 400: the whole body, `adminPass` too."""
    head, found, tail = message.partition(" Value: ")
    if not found:
        return message
    reason = _REASONS.search(tail)
    if reason is None:
        return f"{head} (The value is not shown.)"
    return f"{head} {'The value ' if reason[1].startswith(('is ', 'does ')) else ''}{reason[1]}"
