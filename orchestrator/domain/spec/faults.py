"""pydantic's findings in a person's words: each fault with its path, a stable code and the remedy."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from orchestrator.domain.spec.codes import OURS, Code, Loc
from orchestrator.errors import Fault

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_\-]*", re.ASCII)

_TYPES = {
    "string_type": "must be text",
    "int_type": "must be a whole number, not in quotes",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false, not in quotes",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping with the fields {fields}",
    "mapping_type": "must be a mapping of keys to values",
    "none_required": "must be left out",
}

_REFUSED = {
    "adminpass": (
        "a plan sets no passwords: the call's answer would show it, and Huawei's clouds ignore it. "
        "Let key_name or user_data give access"
    ),
    "os-dcf:diskconfig": (
        "how the disk is partitioned stays as each server has it: Huawei's clouds refuse this field, "
        "and on others one word of it repartitions a whole fleet. Leave it out"
    ),
    "preserve_ephemeral": (
        "only bare metal can keep ephemeral disks: everywhere else the cloud accepts the call and then leaves the "
        "server in ERROR. Leave it out"
    ),
}
_REFUSED_AS = {"admin_pass": "adminpass", "diskconfig": "os-dcf:diskconfig", "disk_config": "os-dcf:diskconfig"}


def path_of(loc: Loc) -> str:
    """`("rollout", "waves", 1, "size")` → `rollout.waves[1].size`; odd keys stand in brackets and quotes."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f'["{part}"]'
    return path


def faults_of(error: ValidationError, root: type[BaseModel]) -> Iterator[Fault]:
    """One fault for each of pydantic's findings, in the order of the fields of `root`. No value is quoted."""
    for line in error.errors(include_url=False, include_input=False):
        loc = tuple(part for part in line["loc"] if part != "[key]")
        code, message = _say(line["type"], line["msg"], line.get("ctx", {}), loc, root)
        yield Fault(path=path_of(loc), code=code.value, message=message)


def _say(kind: str, said: str, ctx: Mapping[str, Any], loc: Loc, root: type[BaseModel]) -> tuple[Code, str]:
    if kind.startswith(OURS):
        return Code(kind.removeprefix(OURS)), said
    if kind in _TYPES:
        return Code.WRONG_TYPE, _TYPES[kind].format(fields=", ".join(fields_at(root, loc)))
    match kind:
        case "missing":
            return Code.MISSING, "is required"
        case "extra_forbidden":
            return _unknown(str(loc[-1]), fields_at(root, loc[:-1]))
        case "value_error":
            return Code.INVALID_VALUE, str(ctx["error"])
        case "literal_error":
            return Code.INVALID_VALUE, f"must be {ctx['expected'].replace(chr(39), '')}"
        case "greater_than_equal":
            return Code.OUT_OF_RANGE, f"must be at least {ctx['ge']}"
        case "less_than_equal":
            return Code.OUT_OF_RANGE, f"must be at most {ctx['le']}"
        case "string_too_short":
            return Code.TOO_SHORT, "must not be empty"
        case "string_too_long":
            return Code.TOO_LONG, f"must be at most {ctx['max_length']} characters"
        case "too_short":
            return Code.TOO_SHORT, f"must have at least {ctx['min_length']} item; to leave it open, leave the field out"
        case "too_long":
            return Code.TOO_LONG, f"must have at most {ctx['max_length']} items"
        case _:
            return Code.INVALID_VALUE, said[:1].lower() + said[1:]


def _unknown(name: str, known: list[str]) -> tuple[Code, str]:
    folded = name.lower()
    if reason := _REFUSED.get(_REFUSED_AS.get(folded, folded)):
        return Code.REFUSED_FIELD, reason
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"fields here are {', '.join(known)}"
    return Code.UNKNOWN_FIELD, f"there is no such field; {hint}"


def fields_at(root: type[BaseModel], loc: Loc) -> list[str]:
    """The names of the fields that the model at `loc` knows, as the file writes them."""
    model: type[BaseModel] | None = root
    for part in loc:
        if isinstance(part, str) and model is not None:
            field = next((f for name, f in model.model_fields.items() if (f.alias or name) == part), None)
            model = None if field is None else _model_in(field.annotation, *field.metadata)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _model_in(*parts: object) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Wave, ...] | None` is about."""
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
        if found := _model_in(*get_args(part)):
            return found
    return None
