"""What a cloud's "slow down" says, in each form seen, and what no answer may do: raise."""

import json
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from multidict import CIMultiDict

from orchestrator.clouds.answers import SlowDown, classify, slow_down_of
from orchestrator.clouds.protocol import Cause, Effect

SID = "80eaeaa4-5441-4574-9e7c-363513d1c508"
DATE = "Mon, 23 Nov 2026 10:00:00 GMT"
LATER = "Mon, 23 Nov 2026 10:01:30 GMT"
TEN_A_MINUTE = {"error_code": "APIGW.0308", "error_msg": "The throttling threshold has been reached: policy user over "
                "ratelimit,limit:10,time:1 minute", "request_id": "x"}  # fmt: skip
OVER_LIMIT = {"overLimit": {"code": 429, "message": "This request was rate-limited.", "retryAfter": "12"}}


def told(body: Any, headers: Mapping[str, str] | None = None, status: int = 429) -> tuple[float | None, float | None]:
    answer = classify(status, CIMultiDict(headers or {}), json.dumps(body).encode())
    assert (answer.effect, answer.cause) == (Effect.NOT_APPLIED, Cause.THROTTLED)
    return answer.retry_after, answer.allowed_rate


@pytest.mark.parametrize("status", [413, 429, 503])
def test_novas_own_form_says_how_long_in_its_body(status: int) -> None:
    assert told(OVER_LIMIT, status=status) == (12.0, None)
    assert told(OVER_LIMIT, {"Retry-After": "3"}, status=status) == (3.0, None)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(12, 12.0), (0, 0.0), ("1.5", 1.5), (10**8, 3600.0)]
    + [(bad, None) for bad in (-1, "-1", "soon", "nan", "inf", "1e9", True, None, [], {}, "", "٣", "9" * 30)],
)
def test_a_bodys_retry_after_is_a_number_or_nothing(given: object, seconds: float | None) -> None:
    assert told({"overLimit": {"code": 429, "message": "slow", "retryAfter": given}}) == (seconds, None)


@pytest.mark.parametrize(
    ("words", "wait", "rate"),
    [
        ("limit:10,time:1 minute", 6.0, 10 / 60),
        ("limit: 10, time: 1 minute.", 6.0, 10 / 60),
        ("LIMIT:10,TIME:1 MINUTE", 6.0, 10 / 60),
        ("limit:60,time:2 minutes", 2.0, 0.5),
        ("limit:200,time:1 second", 1.0, 200.0),
        ("limit:2.5,time:1 second", 1.0, 2.5),
        ("limit:1000,time:minute", 1.0, 1000 / 60),
        ("limit:1,time:1 minute", 60.0, 1 / 60),
        ("limit:2,time:1 hour", 1800.0, 2 / 3600),
        ("limit:1,time:1 day", 3600.0, 1 / 86400),
        ("limit:0,time:1 minute", None, None),
        ("limit:10,time:0 minutes", None, None),
        ("limit:10", None, None),
        ("limit:-10,time:1 minute", None, None),
        ("limit:10,time:1 fortnight", None, None),
        ("unlimit:10,time:1 minute", None, None),
    ],
)
def test_huaweis_gateway_says_its_limit_in_its_message(words: str, wait: float | None, rate: float | None) -> None:
    """Without Retry-After: the time of one call, at least a second and at most the window (or an hour)."""
    seconds, allowed = told({"error_code": "APIGW.0308", "error_msg": f"The threshold has been reached: {words}"})
    assert seconds == wait
    assert allowed == (None if rate is None else pytest.approx(rate))


def test_a_retry_after_wins_over_the_limits_words_and_the_limit_is_kept() -> None:
    assert told(TEN_A_MINUTE) == (6.0, pytest.approx(1 / 6))
    assert told(TEN_A_MINUTE, {"Retry-After": "30"}) == (30.0, pytest.approx(1 / 6))
    assert told({**TEN_A_MINUTE, "error_code": "APIG.0308"}) == (6.0, pytest.approx(1 / 6))


def test_a_limit_in_an_answer_that_is_no_throttle_changes_no_rate() -> None:
    answer = classify(400, CIMultiDict(), json.dumps({"error_code": "X", "error_msg": "limit:1,time:1 day"}).encode())
    assert (answer.cause, answer.allowed_rate) == (Cause.BAD_REQUEST, None)


def test_a_time_is_held_against_the_answers_date_else_the_callers_clock_else_says_nothing() -> None:
    clock = datetime(2026, 11, 23, 10, 1, tzinfo=UTC)
    for headers, otherwise, seconds in [
        ({"Retry-After": LATER, "Date": DATE}, None, 90.0),
        ({"Retry-After": LATER, "Date": DATE}, clock, 90.0),
        ({"Retry-After": LATER}, clock, 30.0),
        ({"Retry-After": DATE}, clock, 0.0),
        ({"Retry-After": LATER}, None, None),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT", "Date": DATE}, None, 3600.0),
    ]:
        answer = classify(429, CIMultiDict(headers), b"", otherwise=otherwise)
        assert answer.retry_after == seconds
        assert slow_down_of(CIMultiDict(headers), b"", otherwise=otherwise) == SlowDown(
            retry_after=seconds, allowed_rate=None
        )


def test_a_503_with_retry_after_proves_nothing_unless_it_is_an_over_limit() -> None:
    """A gateway's 503 comes in the midst of a rebuild too; how long to wait is still told."""
    page = classify(503, CIMultiDict({"Retry-After": "5"}), b"<html>Service Unavailable</html>")
    assert (page.effect, page.cause, page.retry_after) == (Effect.UNKNOWN, Cause.SERVER_ERROR, 5.0)
    assert told(OVER_LIMIT, {"Retry-After": "5"}, status=503) == (5.0, None)


BEYOND = "Fri, 31 Dec 9999 23:59:59 -2359"
TIMES = ["", "x", "-1", "1e400", "٣", "0" * 20, DATE, "Mon, 01 Jan 0001 00:00:00 +2359", BEYOND]
BODIES = [
    b'{"server":{"id":"x","status":"REBUILD","image":{"id":1},"metadata":[],"tags":{},"links":3}}',
    b'{"server":{"id":"x","status":"REBUILD","updated":"0001-01-01T00:00:00+23:59"}}',
    json.dumps(TEN_A_MINUTE).encode(),
    json.dumps(OVER_LIMIT).encode(),
    b'{"error":{"code":[],"message":{}}}',
    b'{"error_code":null,"error_msg":[1]}',
    b"\xff\xfe{\x00",
    b"[" * 3000,
    b"1" * 5000,
]


@pytest.mark.parametrize("when", TIMES)
def test_impossible_times_are_no_times(when: str) -> None:
    for status in (202, 429, 500):
        for body in BODIES:
            classify(status, CIMultiDict({"Date": when, "Retry-After": when}), body, server_id="x")


def test_no_answer_whatever_makes_the_classification_fail() -> None:
    """It comes after the call: an exception here would lose track of a server."""
    dice = random.Random(20261125)
    for _ in range(5000):
        body = bytearray(dice.choice(BODIES))
        for _ in range(dice.randrange(4)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        status = dice.choice([200, 202, 302, 400, 413, 429, 500, 503])
        headers = CIMultiDict({"Date": dice.choice(TIMES), "Retry-After": dice.choice(TIMES)})
        answer = classify(status, headers, bytes(body), server_id="x")
        assert answer.effect is not Effect.APPLIED or status == 202
        assert answer.retry_after is None or 0.0 <= answer.retry_after <= 3600.0
        assert answer.allowed_rate is None or answer.allowed_rate > 0
