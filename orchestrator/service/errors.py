"""Errors of the use cases themselves."""

from orchestrator.errors import RebuildError


class NotSupportedYet(RebuildError):
    """This comes with a later version."""

    code = "not_supported_yet"


class RequestInvalid(RebuildError, ValueError):
    """The request has faults; each is listed with its path."""

    code = "invalid_request"


class BodyUnreadable(RebuildError, ValueError):
    """The body is not JSON."""

    code = "invalid_json"
