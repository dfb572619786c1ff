"""Plan files: YAML or JSON from a file or stdin, as the JSON that the API takes."""

import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

MAX_BYTES = 64 * 1024 * 1024
"""The API takes no larger body."""


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """YAML with the scalars of JSON alone.

    YAML 1.1 would read `01:00` as 60, `on` as true, `0755` as 493, 2026-11-01 as a date and an id like `12e7` as a
    number; a plan means the text.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own way


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^-?(?:0|[1-9][0-9]*)$", re.A), list("-0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^-?(?:0|[1-9][0-9]*)\.[0-9]+$", re.A), list("-0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^(?:<<)$"), ["<"])


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        text = key.value if isinstance(key, yaml.ScalarNode) else None
        if text is None or text in seen:
            what = "a key must be plain text" if text is None else f"the key {text!r} stands here twice"
            raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        if text != "<<":
            seen.add(text)
            # `8080: …` and `true: …` are keys of text in JSON.
            key.tag = "tag:yaml.org,2002:str"
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_plan_file(name: str) -> dict[str, Any]:
    """The plan in that file, or in stdin for `-`.

    Raises `click.UsageError` with file, line and column where it can't be read.
    """
    shown = "stdin" if name == "-" else name
    try:
        content = sys.stdin.buffer.read(MAX_BYTES + 1) if name == "-" else Path(name).read_bytes()
    except OSError as e:
        raise click.UsageError(f"{shown}: {e.strerror}") from None
    if len(content) > MAX_BYTES:
        raise click.UsageError(f"{shown}: larger than 64 MiB, which is the most that a plan may be")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise click.UsageError(f"{shown}: not UTF-8 text (byte {e.start})") from None
    document = (
        _parse_json(text, shown) if text.lstrip()[:1] == "{" and _is_json_name(name) else _parse_yaml(text, shown)
    )
    if not isinstance(document, dict):
        raise click.UsageError(f"{shown}: a plan is a mapping with name, cloud, image and targets")
    return document


def _is_json_name(name: str) -> bool:
    """A YAML file may begin with a brace as well; only a name ending in .yaml says that it is meant."""
    return not name.endswith((".yaml", ".yml"))


def _parse_json(text: str, shown: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            double = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise click.UsageError(f"{shown}: the key {double!r} stands twice in one object")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as e:
        if shown == "stdin":  # flow-style YAML begins like JSON
            return _parse_yaml(text, shown)
        raise click.UsageError(f"{shown}:{e.lineno}:{e.colno}: {e.msg}") from None
    except RecursionError:
        raise click.UsageError(f"{shown}: nested too deeply") from None


def _parse_yaml(text: str, shown: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a safe loader with fewer types
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise click.UsageError(f"{shown}{where}: {e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise click.UsageError(f"{shown}: {e}") from None
    except (RecursionError, ValueError) as e:
        raise click.UsageError(f"{shown}: {e}") from None


def encode_plan(document: Mapping[str, Any]) -> bytes:
    """The request's body: the same bytes for the same plan. Raises `click.UsageError` for what JSON can't say."""
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as e:
        raise click.UsageError(f"the plan can't be written as JSON: {e}") from None


_CI = (
    ("GitHub Actions", ("GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_JOB")),
    ("GitLab CI", ("CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_JOB_NAME")),
    ("Jenkins", ("BUILD_TAG",)),
)
"""Project, pipeline or run, and job. No attempt: a job that is run again finds the plan that its first run began."""


def default_key(name: str, body: bytes) -> tuple[str, str | None]:
    """An idempotency key and the CI system that it comes from.

    Outside CI it is a new one for each call, so that one submit may be tried again and two submits are two plans. The
    body is part of it: jobs of one matrix share their names, and a preview is another plan than its submit.
    """
    for system, variables in _CI:
        values = [os.environ.get(v, "") for v in variables]
        if all(values):
            digest = hashlib.sha256(json.dumps([system, *values, name]).encode() + b"\0" + body).hexdigest()
            return f"ci-{digest[:48]}", system
    return str(uuid.uuid4()), None
