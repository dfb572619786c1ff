"""What a caller of the API can meet."""

from collections.abc import Sequence

from orchestrator.errors import Fault, RebuildError


class ApiProblem(RebuildError):
    """The API refused the request."""

    code = "api_problem"

    def __init__(
        self, *, status: int, code: str = "", title: str = "", detail: str = "", errors: Sequence[Fault] = ()
    ) -> None:
        super().__init__(detail or title or f"the API answered {status}", errors=errors, code=code or f"http_{status}")
        self.status = status
        """The answer's HTTP status."""
        self.title = title


class ApiUnreachable(RebuildError, ConnectionError):
    """The API does not answer."""

    code = "api_unreachable"
