"""Hooks, as far as they are pure: what is called when, how it is signed, and what an answer means.

Signed as Standard Webhooks say (https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp`, and
`webhook-signature: v1,<base64 of HMAC-SHA-256 over "id.timestamp.body">`.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.domain.spec.extras import Hook, Hooks, ReleaseHook


class Phase(StrEnum):
    """When a hook is called."""

    BEFORE = "before"
    """Drains the server."""
    AFTER = "after"
    """Configures it once it was rebuilt and probed."""
    RELEASE = "release"
    """Takes it back into service."""


class HookResult(StrEnum):
    """What became of a hook."""

    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class HookDue:
    """A hook that a job's transition makes due."""

    phase: Phase
    timeout: float
    """Seconds until it has failed."""


FORBIDDEN_SECRETS = ("REBUILD_", "OS_")
"""Variables with these beginnings are the service's own and no plan's."""
BACKOFF_INITIAL, BACKOFF_MAX = 0.5, 30.0


def hook_of(hooks: Hooks | None, phase: Phase) -> Hook | ReleaseHook | None:
    """The plan's hook for that phase."""
    if hooks is None:
        return None
    match phase:
        case Phase.BEFORE:
            return hooks.before
        case Phase.AFTER:
            return hooks.after
        case Phase.RELEASE:
            return hooks.release


def due(hooks: Hooks | None, phase: Phase) -> HookDue | None:
    """That phase's hook as a transition makes it due."""
    hook = hook_of(hooks, phase)
    return None if hook is None else HookDue(phase=phase, timeout=hook.timeout)


def goes_on(hooks: Hooks | None, phase: Phase) -> bool:
    """Whether a job goes on although that hook failed."""
    hook = hook_of(hooks, phase)
    return isinstance(hook, Hook) and hook.on_failure == "continue"


def backoff(tries: int) -> float:
    """Seconds from the `tries`-th try to the next."""
    return float(min(BACKOFF_MAX, BACKOFF_INITIAL * 2 ** min(10, max(0, tries - 1))))


def key_of(secret: str) -> bytes:
    """The key of a secret: the base64 after `whsec_`, else the text itself."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            pass
    return secret.encode()


def signed(body: bytes, *, message_id: str, timestamp: int, secret: str | None) -> dict[str, str]:
    """The headers of a call; without a secret it isn't signed."""
    headers = {"content-type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if secret is not None:
        mac = hmac.digest(key_of(secret), f"{message_id}.{timestamp}.".encode() + body, "sha256")
        headers["webhook-signature"] = f"v1,{base64.b64encode(mac).decode()}"
    return headers


class SecretMissing(LookupError):
    """A secret that the plan names isn't to be had here."""


def secret_of(reference: str | None, environment: Mapping[str, str]) -> str | None:
    """The secret that `env:NAME` names; None where the plan names none. Raises `SecretMissing`."""
    if reference is None:
        return None
    name = reference.removeprefix("env:")
    if name.upper().startswith(FORBIDDEN_SECRETS):
        raise SecretMissing(f"The secret {reference} is refused: {name} is the service's own.")
    if not (value := environment.get(name, "")):
        raise SecretMissing(f"The secret {reference} is missing: the drive workers have no variable {name}.")
    return value
