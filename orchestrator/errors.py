"""One tree of errors.

The docstring of a class is its default message. `code` is the stable, machine-readable name that the API's
problem documents, the ledger's reasons and rebuildctl show; `errors` itemises faults with the path of the field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong with an input: where (`targets.servers[3].id`), which code, and the remedy."""

    path: str
    code: str
    message: str


class RebuildError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, *, errors: Sequence[Fault] = (), code: str | None = None):
        self.message = message or (type(self).__doc__ or "").strip()
        self.errors = tuple(errors)
        self.reason_code = code or self.code
        super().__init__(self.message)


class SpecInvalid(RebuildError, ValueError):
    """The plan has faults; each is listed with its path."""

    code = "invalid_spec"


class SettingsInvalid(RebuildError, ValueError):
    """A setting of the environment is wrong."""

    code = "invalid_settings"


class Unauthenticated(RebuildError):
    """A bearer token is needed: the one given is unknown, expired or revoked."""

    code = "unauthenticated"


class NotAllowed(RebuildError, PermissionError):
    """This token's role does not allow that."""

    code = "not_allowed"


class NotFound(RebuildError, LookupError):
    """There is no such thing."""

    code = "not_found"


class Conflict(RebuildError):
    """That can't be done in the present state."""

    code = "conflict"


class IdempotencyKeyReused(RebuildError):
    """This Idempotency-Key was used with another body; use a new key for a new plan."""

    code = "idempotency_key_reused"


class Unavailable(RebuildError):
    """The service can't answer now; try again shortly."""

    code = "unavailable"


class CloudError(RebuildError):
    """The cloud could not be used."""

    code = "cloud_error"


class CloudConfigInvalid(CloudError, ValueError):
    """The cloud's entry in clouds.yaml is missing or wrong."""

    code = "cloud_config"


class CloudUnknown(CloudConfigInvalid):
    """No cloud of that name is configured."""

    code = "unknown_cloud"


class CloudSignInRefused(CloudError):
    """The cloud refused the sign-in: check the user, password and project in clouds.yaml."""

    code = "cloud_sign_in_refused"


class CloudUnreachable(CloudError, ConnectionError):
    """The cloud does not answer."""

    code = "cloud_unreachable"


class CloudTokenExpired(CloudError):
    """The cloud no longer takes the token; a new one is being fetched."""

    code = "cloud_token_expired"


class CloudThrottled(CloudError):
    """The cloud asked to slow down."""

    code = "cloud_throttled"

    def __init__(
        self, message: str | None = None, *, retry_after: float | None = None, allowed_rate: float | None = None
    ):
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait, where the cloud said so."""
        self.allowed_rate = allowed_rate
        """Calls per second that it allows, where it said so."""


class CloudAnswerInvalid(CloudError, ValueError):
    """The cloud's answer can't be understood."""

    code = "cloud_answer_invalid"


class CloudNotOffered(CloudError):
    """The cloud doesn't offer that."""

    code = "cloud_not_offered"


class LeaseLost(RebuildError):
    """The driver no longer owns its project; it stops at once."""

    code = "lease_lost"
