"""What an answer to the rebuild call proves, and why it was what it was."""

from enum import StrEnum


class Effect(StrEnum):
    """What an answer to the rebuild call proves."""

    APPLIED = "applied"
    """Accepted: the cloud will carry it out."""
    NOT_APPLIED = "not_applied"
    """Proved to have had no effect."""
    UNKNOWN = "unknown"
    """Anything may have happened."""


class Cause(StrEnum):
    """Why an answer was what it was; each has its own policy in `domain/retry.py`."""

    ACCEPTED = "accepted"
    NEVER_SENT = "never_sent"
    """Not a byte of the request left (refused connection, DNS, TLS, no connection free in time)."""
    TOKEN = "token"  # noqa: S105  the word, not a secret
    """401: the token is not taken any more."""
    THROTTLED = "throttled"
    """429, or 503/413 overLimit."""
    BUSY = "busy"
    """409 `in task_state …`: the server is at something else; or our own earlier POST."""
    WRONG_STATE = "wrong_state"
    """409 `in vm_state …`: won't change by itself."""
    LOCKED = "locked"
    """409 `is locked`."""
    BAD_REQUEST = "bad_request"
    """400 or 413: the call itself is refused."""
    FORBIDDEN = "forbidden"
    """403: policy or quota."""
    NOT_FOUND = "not_found"
    """404: no such server (for us)."""
    MOVED = "moved"
    """404 in another form than Nova's, or 410: the compute service isn't there (any more)."""
    SERVER_ERROR = "server_error"
    """5xx: proves nothing."""
    NO_ANSWER = "no_answer"
    """Timeout or reset after the request may have left: proves nothing."""
    UNREADABLE = "unreadable"
    """A 2xx that can't be parsed, a redirect, or a status that the table doesn't know: proves nothing."""
