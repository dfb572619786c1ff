"""Which fields of the plan file wait for a later version. A line goes when its behaviour comes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.spec.codes import Code, Loc
from orchestrator.domain.spec.faults import path_of
from orchestrator.errors import Fault

EACH = "*"
"""In a path: every item of a list."""


@dataclass(frozen=True, kw_only=True)
class NotYet:
    """A field that is refused unless it says what happens anyway."""

    path: tuple[str, ...]
    purpose: str
    taken: tuple[Any, ...] = ()
    """Values that are the present behaviour."""


NOT_SUPPORTED_YET = (
    NotYet(path=("method",), purpose="Huawei's own methods", taken=("rebuild",)),
    NotYet(path=("os",), purpose="Huawei's own methods"),
    NotYet(path=("targets", "select", "enterprise_project"), purpose="selecting by enterprise project"),
    NotYet(path=("targets", "servers", EACH, "rebuild", "user_data"), purpose="user data of a single server"),
    NotYet(path=("targets", "servers", EACH, "rebuild", "key_name"), purpose="a key for a single server"),
    NotYet(path=("rebuild", "user_data", "ref"), purpose="user data by reference"),
    NotYet(path=("notify",), purpose="notifications", taken=([],)),
)


def not_supported_yet(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """A fault for each field of `raw` whose behaviour this version hasn't got."""
    for field in NOT_SUPPORTED_YET:
        for loc, value in _given(raw, field.path, ()):
            if value is not None and not any(value == v and type(value) is type(v) for v in field.taken):
                message = f"{field.purpose}: this version can't do that yet, so the plan is refused; leave it out"
                yield Fault(path=path_of(loc), code=Code.NOT_SUPPORTED_YET.value, message=message)


def _given(value: object, path: tuple[str, ...], loc: Loc) -> Iterator[tuple[Loc, object]]:
    """Where `path` leads in `value`, and what stands there."""
    if not path:
        yield loc, value
        return
    head, *rest = path
    if head == EACH:
        for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(item, Mapping):
                yield from _given(item, tuple(rest), (*loc, i))
    elif isinstance(value, Mapping) and head in value:
        yield from _given(value[head], tuple(rest), (*loc, head))
