"""The plan file's scalar types: strict (`"5"` isn't 5), each with its notation, its schema and its remedy."""

import re
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from orchestrator.domain.evidence import MARKER
from orchestrator.domain.spec.codes import Code, Refusals, refusal
from orchestrator.domain.spec.text import metadata_key_fault, metadata_value_fault, printable
from orchestrator.domain.units import (
    MAX_COUNT,
    Size,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
)

T = TypeVar("T")


def _as_written(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Makes a JSON Schema tell the file's rules: fields have values or are left out; defaults are the file's."""
    defaults = model.model_construct().model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)
    for name, field in schema.get("properties", {}).items():
        if {"type": "null"} in field.get("anyOf", []):
            field["anyOf"].remove({"type": "null"})
            if len(field["anyOf"]) == 1:
                field.update(field.pop("anyOf")[0])
        field.pop("default", None)
        if name in defaults:
            field["default"] = defaults[name]


class Strict(BaseModel):
    """A part of the plan file: no unknown fields, no conversions, no changes afterwards."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        json_schema_extra=_as_written,
    )


def _text(value: object, example: str) -> str:
    if not isinstance(value, str):
        raise refusal(Code.WRONG_TYPE, f'must be text such as "{example}"')
    return value


def _printable(value: str) -> str:
    if not printable(value):
        raise refusal(Code.INVALID_VALUE, "must be of printable characters, in one line")
    return value


def _trimmed(value: str) -> str:
    if value != value.strip():
        raise refusal(Code.INVALID_VALUE, "must not begin or end with a blank")
    return value


def matching(pattern: str, message: str) -> AfterValidator:
    """Takes texts of this form only; `message` says what is wanted."""
    form = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if form.fullmatch(value) is None:
            raise refusal(Code.INVALID_VALUE, message)
        return value

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)]
"""One line of 1 to 255 printable characters."""

Title = Annotated[str, Field(min_length=1, max_length=254), AfterValidator(_printable), AfterValidator(_trimmed)]
"""A name of ours: a plan's or a wave's."""

ImageRef = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_printable), AfterValidator(_trimmed)]
"""An image's id, URL or exact name; which of them is found out against the cloud."""

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def _duration(value: object) -> float:
    return parse_duration(_text(value, "30m"))


Duration = Annotated[
    float,
    PlainValidator(_duration),
    PlainSerializer(format_duration),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(s|m|h|d)$", "examples": ["90s", "30m"]}),
]
"""Seconds; the file writes `90s`, `30m`, `2h`, `1d`."""


def _some_time(value: float) -> float:
    if value <= 0:
        raise refusal(Code.OUT_OF_RANGE, "must be at least 1s")
    return value


Period = Annotated[Duration, AfterValidator(_some_time)]
"""A duration above zero."""


def _rate(value: object) -> float:
    return parse_rate(_text(value, "10/s"))


Rate = Annotated[
    float,
    PlainValidator(_rate),
    PlainSerializer(format_rate),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?/(s|m)$", "examples": ["10/s", "600/m"]}),
]
"""Calls per second; the file writes `10/s` or `600/m`."""


def _size(value: Any) -> Size:
    return value if isinstance(value, Size) else Size.parse(value)


def _limit(value: Any) -> Size:
    return value if isinstance(value, Size) else Size.parse_limit(value)


def _size_schema(least: int) -> WithJsonSchema:
    percent = {"type": "string", "pattern": r"^\d+(\.\d+)?%$", "examples": ["5%"]}
    return WithJsonSchema({"anyOf": [{"type": "integer", "minimum": least, "maximum": MAX_COUNT}, percent]})


Share = Annotated[Size, PlainValidator(_size), PlainSerializer(Size.to_document), _size_schema(1)]
"""A count of at least 1, or a percentage above 0."""

ErrorLimit = Annotated[Size, PlainValidator(_limit), PlainSerializer(Size.to_document), _size_schema(0)]
"""How many failures are put up with: a count or a percentage; 0 is none."""

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _moment(value: object) -> datetime:
    text = _text(value, "2026-11-30T22:00:00+01:00").upper()
    if _RFC3339.fullmatch(text) is None:
        raise refusal(Code.INVALID_VALUE, "must be an RFC 3339 time with its offset, such as 2026-11-30T22:00:00+01:00")
    return datetime.fromisoformat(text)


Moment = Annotated[
    datetime,
    PlainValidator(_moment),
    PlainSerializer(datetime.isoformat),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A time with its offset."""


def _list(value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise refusal(Code.WRONG_TYPE, "must be a list")
    return tuple(value)


Listed = Annotated[tuple[T, ...], BeforeValidator(_list)]
"""A list in the file, a tuple here."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
SERVER_ID_REMEDY = (
    "must be a server's id, such as 9168b536-cd40-4630-b43f-b259807c6e87; to go by name write {find: NAME}"
)


def server_id(value: object) -> str | None:
    """The id in lower case, as the cloud writes it; None for what is no id."""
    if isinstance(value, str) and _UUID.fullmatch(lower := value.lower()):
        return lower
    return None


def _known_id(value: str) -> str:
    if (known := server_id(value)) is None:
        raise refusal(Code.INVALID_VALUE, SERVER_ID_REMEDY)
    return known


ServerId = Annotated[str, AfterValidator(_known_id), WithJsonSchema({"type": "string", "format": "uuid"})]
"""One server by id, in lower case."""


def server_ids(value: object, *, once: bool = True) -> tuple[str, ...]:
    """A list of ids, in lower case; with `once` a repeated one is a fault, else it is dropped.

    Raises `ValidationError` with all faults of the list.
    """
    refusals = Refusals()
    first: dict[str, int] = {}
    for i, item in enumerate(_list(value)):
        if (known := server_id(item)) is None:
            refusals.add((i,), Code.INVALID_VALUE if isinstance(item, str) else Code.WRONG_TYPE, SERVER_ID_REMEDY)
        elif (earlier := first.setdefault(known, i)) != i and once:
            refusals.add((i,), Code.DUPLICATE, f"names the server of [{earlier}] again: leave one of them out")
    refusals.raise_if_any()
    return tuple(first)


ServerIds = Annotated[
    tuple[str, ...],
    PlainValidator(server_ids),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string", "format": "uuid"}, "uniqueItems": True}),
]
"""Servers by id, each once, in lower case."""


def _server_id_set(value: object) -> frozenset[str]:
    return frozenset(server_ids(value, once=False))


ServerIdSet = Annotated[
    frozenset[str],
    PlainValidator(_server_id_set),
    PlainSerializer(sorted),
    WithJsonSchema({"type": "array", "items": {"type": "string", "format": "uuid"}}),
]
"""Servers by id, in no order."""


def _metadata(value: object, *, nulls: bool) -> dict[str, str | None]:
    if not isinstance(value, dict):
        raise refusal(Code.WRONG_TYPE, "must be a mapping of keys to texts")
    refusals = Refusals()
    for key, item in value.items():
        if not isinstance(key, str):
            refusals.add((str(key),), Code.WRONG_TYPE, "a metadata key is text: write it in quotes")
        elif fault := metadata_key_fault(key):
            refusals.add((key,), Code.INVALID_VALUE, fault)
        if isinstance(item, str):
            if fault := metadata_value_fault(item):
                refusals.add((str(key),), Code.INVALID_VALUE, fault)
        elif item is not None or not nulls:
            removes = ", or null, which removes the key" if nulls else ""
            refusals.add((str(key),), Code.WRONG_TYPE, f"must be text (write numbers in quotes){removes}")
    refusals.raise_if_any()
    return dict(value)


def _metadata_change(value: object) -> dict[str, str | None]:
    pairs = _metadata(value, nulls=True)
    if MARKER in pairs:
        raise refusal(Code.IMPOSSIBLE, f"{MARKER} is the service's own mark of who rebuilt a server; leave it out")
    return pairs


def _metadata_filter(value: object) -> dict[str, str | None]:
    pairs = _metadata(value, nulls=False)
    if not pairs:
        raise refusal(Code.TOO_SHORT, "must name at least one key and value, or be left out")
    return pairs


MetadataChange = Annotated[
    dict[str, str | None],
    PlainValidator(_metadata_change),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "null"], "maxLength": 255}}),
]
"""Keys to set; null removes one. How many a server may have is a quota of the cloud and left to it."""

MetadataFilter = Annotated[
    dict[str, str],
    PlainValidator(_metadata_filter),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}),
]
"""Pairs that a server's metadata is compared with."""

SecretName = Annotated[
    str,
    matching(
        r"env:(?!(?i:REBUILD_|OS_))[A-Za-z_][A-Za-z0-9_]*",
        "must name a variable of the worker's environment, such as env:HOOK_KEY, but none of REBUILD_* and OS_*",
    ),
]
"""`env:NAME`: a secret is never in the file itself."""

SecretPlace = Annotated[
    str,
    matching(
        r"env:[A-Za-z_][A-Za-z0-9_]*|file:[A-Za-z0-9._/-]+",
        "must say where the worker finds it, such as env:USER_DATA or file:web/user-data",
    ),
]
"""`env:NAME` or `file:NAME`, looked up in the worker's allow-list."""

WebAddress = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    matching(
        r"https?://[!-.0-?A-~]+(/[!-~]*)?",
        "must be an http:// or https:// address, without a user or password in it",
    ),
]
