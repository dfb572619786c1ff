"""Rules that span several fields. They look at the file as it was written, so that they speak up beside faults of
single fields; what has the wrong type here is somebody else's fault to report."""

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.domain.spec.codes import Code, Loc
from orchestrator.domain.spec.faults import path_of
from orchestrator.domain.spec.types import server_id
from orchestrator.domain.units import Size
from orchestrator.errors import Fault

MAX_DEPTH = 16
"""Deeper than any field; what is nested deeper is an unknown field anyway."""


def rules(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """The faults of `raw` that no single field shows."""
    yield from _nothing_is_null(raw, ())
    yield from _image_goes_with_method(raw)
    yield from _os_goes_with_method(raw)
    yield from _named_servers_fit_max(raw)
    yield from _waves_grow(raw)
    yield from _waves_differ(raw)
    yield from _waves_name_targets(raw)
    yield from _nulls_need_merge(raw)


def _fault(path: str, code: Code, message: str) -> Fault:
    return Fault(path=path, code=code.value, message=message)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else []


def _nothing_is_null(value: object, loc: Loc) -> Iterator[Fault]:
    """An empty `exclude:` or `max:` in YAML is more likely forgotten than meant, and must not count as none."""
    if value is None:
        yield _fault(path_of(loc), Code.WRONG_TYPE, "has no value: give one, or leave the field out")
    elif len(loc) > MAX_DEPTH:
        return
    elif isinstance(value, Mapping):
        if loc[-2:] != ("rebuild", "metadata"):
            for key, item in value.items():
                yield from _nothing_is_null(item, (*loc, str(key)))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            if not isinstance(item, str):
                yield from _nothing_is_null(item, (*loc, i))


def _image_goes_with_method(raw: Mapping[str, Any]) -> Iterator[Fault]:
    if raw.get("method") == "reinstall_os":
        if raw.get("image") is not None:
            yield _fault(
                "image", Code.IMPOSSIBLE, "reinstall_os keeps each server's image; leave it out or use change_os"
            )
    elif "image" not in raw:
        yield _fault("image", Code.MISSING, "is required: the id, URL or exact name of the new image")


def _os_goes_with_method(raw: Mapping[str, Any]) -> Iterator[Fault]:
    if raw.get("method") in ("reinstall_os", "change_os"):
        if "os" not in raw:
            yield _fault("os", Code.MISSING, f"is required for {raw['method']}")
    elif raw.get("os") is not None:
        yield _fault("os", Code.IMPOSSIBLE, "goes with method reinstall_os or change_os only")


def _named_servers_fit_max(raw: Mapping[str, Any]) -> Iterator[Fault]:
    targets = _mapping(raw.get("targets"))
    most, named = targets.get("max"), len(_list(targets.get("servers")))
    if isinstance(most, int) and not isinstance(most, bool) and 0 < most < named:
        yield _fault("targets.max", Code.IMPOSSIBLE, f"the plan names {named} servers, more than its max of {most}")


def _waves(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [_mapping(wave) for wave in _list(_mapping(raw.get("rollout")).get("waves"))]


def _waves_grow(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Counts can be compared with counts, percentages with percentages; the rest depends on the fleet."""
    greatest: dict[bool, Size] = {}
    for i, wave in enumerate(_waves(raw)):
        try:
            size = Size.parse(wave.get("size", ""))
        except ValueError:
            continue
        before = greatest.setdefault(size.percent is None, size)
        if (size.count or 0, size.percent or 0) < (before.count or 0, before.percent or 0):
            message = f"is below the {before} of an earlier wave: sizes are cumulative"
            yield _fault(f"rollout.waves[{i}].size", Code.IMPOSSIBLE, message)
        else:
            greatest[size.percent is None] = size


def _waves_differ(raw: Mapping[str, Any]) -> Iterator[Fault]:
    names: dict[str, int] = {}
    owners: dict[str, int] = {}
    for i, wave in enumerate(_waves(raw)):
        if isinstance(name := wave.get("name"), str) and (earlier := names.setdefault(name, i)) != i:
            yield _fault(f"rollout.waves[{i}].name", Code.DUPLICATE, f"is the name of wave [{earlier}], too")
        for j, item in enumerate(_list(wave.get("servers"))):
            if (server := server_id(item)) is not None and (earlier := owners.setdefault(server, i)) != i:
                yield _fault(f"rollout.waves[{i}].servers[{j}]", Code.DUPLICATE, f"is named by wave [{earlier}], too")


def _waves_name_targets(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """A wave's own servers must be the plan's; where some are selected or found by name, preparing finds that out."""
    waves = [_list(wave.get("servers")) for wave in _waves(raw)]
    if not any(waves):
        return
    targets = _mapping(raw.get("targets"))
    excluded = {server_id(item) for item in _list(_mapping(targets.get("exclude")).get("servers"))}
    entries = _list(targets.get("servers"))
    known = {server_id(_mapping(item).get("id", item)) for item in entries}
    open_ended = targets.get("select") is not None or any("find" in item for item in map(_mapping, entries))
    for i, servers in enumerate(waves):
        for j, item in enumerate(servers):
            if (server := server_id(item)) is None:
                continue
            if server in excluded:
                yield _fault(
                    f"rollout.waves[{i}].servers[{j}]", Code.IMPOSSIBLE, "is among targets.exclude.servers, too"
                )
            elif server not in known and not open_ended:
                yield _fault(
                    f"rollout.waves[{i}].servers[{j}]", Code.IMPOSSIBLE, "is not among targets.servers: add it there"
                )


def _nulls_need_merge(raw: Mapping[str, Any]) -> Iterator[Fault]:
    if _mapping(raw.get("rebuild")).get("metadata_mode") != "replace":
        return
    for i, item in enumerate(_list(_mapping(raw.get("targets")).get("servers"))):
        if isinstance(item, str):
            continue
        metadata = _mapping(_mapping(_mapping(item).get("rebuild")).get("metadata"))
        for key, value in metadata.items():
            if value is None:
                yield _fault(
                    path_of(("targets", "servers", i, "rebuild", "metadata", str(key))),
                    Code.IMPOSSIBLE,
                    "null removes a key and needs metadata_mode: merge",
                )
