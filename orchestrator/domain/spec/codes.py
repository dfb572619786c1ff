"""What can be wrong with a field of the plan file: the `code` of each fault of a 422."""

from enum import StrEnum

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError


class Code(StrEnum):
    """A fault's stable name."""

    MISSING = "missing"
    """A required field isn't there."""
    UNKNOWN_FIELD = "unknown_field"
    """There is no such field."""
    REFUSED_FIELD = "refused_field"
    """The cloud's API has this field; plans must not use it, and the message says why."""
    WRONG_TYPE = "wrong_type"
    """Text where a number belongs, and the like; nothing is converted."""
    INVALID_VALUE = "invalid_value"
    """The right type, but not a value that is taken."""
    OUT_OF_RANGE = "out_of_range"
    """A number that is too small or too great."""
    TOO_SHORT = "too_short"
    """Empty, or shorter than allowed."""
    TOO_LONG = "too_long"
    """Longer than allowed."""
    DUPLICATE = "duplicate"
    """The same thing is named twice."""
    IMPOSSIBLE = "impossible"
    """Two fields contradict each other."""
    NOT_SUPPORTED_YET = "not_supported_yet"
    """A right field of a later version."""
    MORE_FAULTS = "more_faults"
    """The list of faults was cut."""


Loc = tuple[int | str, ...]

OURS = "plan."
"""Begins the type of our own errors among pydantic's, some of which have the same names."""


def refusal(code: Code, message: str) -> PydanticCustomError:
    """The error that a validator raises: the fault's code and its message, remedy included."""
    return PydanticCustomError(OURS + code.value, message)


class Refusals:
    """Collects the faults of one field, so that they are raised together."""

    def __init__(self) -> None:
        self._lines: list[InitErrorDetails] = []

    def add(self, loc: Loc, code: Code, message: str) -> None:
        """Notes a fault at `loc`, relative to the field."""
        self._lines.append(InitErrorDetails(type=refusal(code, message), loc=loc, input=None))

    def include(self, loc: Loc, error: ValidationError) -> None:
        """Notes all faults of a part that was validated by itself and stands at `loc`."""
        for line in error.errors(include_url=False, include_input=True):
            kind = PydanticCustomError(line["type"], line["msg"], line.get("ctx"))
            self._lines.append(InitErrorDetails(type=kind, loc=(*loc, *line["loc"]), input=line["input"]))

    def raise_if_any(self) -> None:
        """Raises one `ValidationError` with all that was noted."""
        if self._lines:
            raise ValidationError.from_exception_data("plan", self._lines)
