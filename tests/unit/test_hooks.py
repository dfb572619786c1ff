"""Hooks' rules: secrets, signatures, pauses between tries."""

import base64
import hashlib
import hmac

import pytest

from orchestrator.domain.hooks import BACKOFF_MAX, Phase, SecretMissing, backoff, due, goes_on, secret_of, signed
from orchestrator.domain.spec.extras import Hooks

HOOKS = Hooks.model_validate(
    {
        "before": {"url": "https://hooks.example/drain", "timeout": "10m"},
        "after": {"url": "https://hooks.example/configure", "on_failure": "continue"},
    }
)


def test_a_call_is_signed_as_standard_webhooks_say() -> None:
    """The vector of the specification's own libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = signed(
        b'{"test": 2432232314}', message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, secret=secret
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-id"] == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert headers["webhook-timestamp"] == "1614265330"


def test_a_secret_of_another_form_is_the_key_itself_and_without_one_nothing_is_signed() -> None:
    headers = signed(b"{}", message_id="a", timestamp=1, secret="whsec_not base64")
    mac = hmac.new(b"whsec_not base64", b"a.1.{}", hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()
    assert "webhook-signature" not in signed(b"{}", message_id="a", timestamp=1, secret=None)


def test_a_secret_comes_from_the_environment_by_its_name() -> None:
    assert secret_of("env:HOOK_KEY", {"HOOK_KEY": "k"}) == "k"
    assert secret_of(None, {}) is None
    with pytest.raises(SecretMissing, match="HOOK_KEY"):
        secret_of("env:HOOK_KEY", {"HOOK_KEY": ""})


@pytest.mark.parametrize("name", ["REBUILD_TOKEN", "OS_PASSWORD", "os_password"])
def test_the_services_own_variables_are_no_secrets_of_plans(name: str) -> None:
    with pytest.raises(SecretMissing, match="own"):
        secret_of(f"env:{name}", {name: "k"})
    with pytest.raises(ValueError, match="REBUILD_"):
        Hooks.model_validate({"before": {"url": "https://hooks.example", "secret": f"env:{name}"}})


def test_what_is_due_and_what_its_failure_means() -> None:
    before = due(HOOKS, Phase.BEFORE)
    assert before is not None
    assert before.timeout == 600
    assert due(HOOKS, Phase.RELEASE) is None
    assert due(None, Phase.BEFORE) is None
    assert [goes_on(HOOKS, phase) for phase in Phase] == [False, True, False]


def test_pauses_grow_to_their_limit() -> None:
    assert [backoff(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert backoff(1000) == BACKOFF_MAX
