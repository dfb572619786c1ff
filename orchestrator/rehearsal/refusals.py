"""What Nova says where it refuses, in its own words and form."""


class Refusal(Exception):
    """An answer in Nova's form: `{"conflictingRequest": {"code": 409, "message": …}}`."""

    def __init__(self, status: int, key: str, message: str):
        self.status = status
        self.key = key
        self.message = message
        super().__init__(message)


def unexpected(kind: str) -> str:
    """What Nova says of an exception that it did not foresee."""
    return (
        "Unexpected API Error. Please report this at http://bugs.launchpad.net/nova/ and attach the Nova API log "
        f"if possible.\n<class '{kind}'>"
    )


def bad_request(message: str) -> Refusal:
    return Refusal(400, "badRequest", message)


def forbidden(message: str) -> Refusal:
    return Refusal(403, "forbidden", message)


def not_found(message: str) -> Refusal:
    return Refusal(404, "itemNotFound", message)


def conflict(message: str) -> Refusal:
    return Refusal(409, "conflictingRequest", message)
