"""Lists of servers: filters, order, pages (nova-facts, 7)."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from urllib.parse import urlencode

from multidict import MultiMapping

from orchestrator.rehearsal.cloud import Caller, RehearsalCloud
from orchestrator.rehearsal.refusals import bad_request, forbidden
from orchestrator.rehearsal.state import STATUS, STATUSES, Server, VmState
from orchestrator.rehearsal.validation import invalid_query
from orchestrator.rehearsal.views import FLAVOR_ID

Query = MultiMapping[str]
Test = Callable[[Server], bool]

# fmt: off
KNOWN = frozenset({
    "limit", "marker", "sort_key", "sort_dir", "status", "name", "image", "changes-since", "changes-before",
    "availability_zone", "flavor", "vm_state", "task_state", "user_id", "key_name", "ip", "ip6", "hostname", "host",
    "uuid", "project_id", "tenant_id", "all_tenants", "metadata", "description", "deleted", "soft_deleted",
    "reservation_id", "power_state", "launched_at", "created_at", "terminated_at", "node", "root_device_name",
    "kernel_id", "ramdisk_id", "display_name", "display_description", "config_drive", "auto_disk_config",
    "access_ip_v4", "access_ip_v6", "progress", "tags", "tags-any", "not-tags", "not-tags-any", "locked",
    "launch_index", "locked_by", "cleaned", "instance_type_id", "image_ref", "system_metadata", "security_groups",
})
# fmt: on
"""The query parameters that 2.75 takes; any other is 400 there, and ignored before."""

_SORT: dict[str, Callable[[Server], object]] = {
    "created_at": lambda s: (int(s.created), s.number),
    "updated_at": lambda s: (int(s.updated), s.number),
    "launched_at": lambda s: (int(s.launched_at), s.number),
    "display_name": lambda s: (s.name, s.number),
    "uuid": lambda s: s.id,
    "vm_state": lambda s: (s.vm_state, s.number),
}


def page(cloud: RehearsalCloud, caller: Caller, query: Query) -> tuple[list[Server], str | None]:
    """The servers of one page, and the query of the next one, where there is one."""
    limit = _limit(cloud, query)
    tests, deleted_too = _tests(cloud, caller, query)
    known = _ordered(cloud, query)
    found: list[Server] = []
    if limit:
        for server in _from_marker(cloud, caller, query, known):
            if not deleted_too and server.vm_state is VmState.DELETED:
                continue
            if all(test(server) for test in tests):
                found.append(server)
                if len(found) == limit:
                    break
    if not limit or len(found) < limit:
        return found, None
    # The real Nova keeps one value of a repeated parameter in its link, the greatest, and so does this one: a client
    # that follows `servers_links` of two `status=` loses the other filter.
    kept = {k: v for k, v in sorted(query.items()) if k != "marker"}
    return found, urlencode([*kept.items(), ("marker", found[-1].id)])


def _limit(cloud: RehearsalCloud, query: Query) -> int:
    given = query.getall("limit", [])
    if not given:
        return cloud.config.page_limit
    for value in given:
        if not re.fullmatch(r"[0-9]*", value):
            raise invalid_query("limit", value, f"{value!r} does not match '^[0-9]*$'")
    return min(int(given[-1] or cloud.config.page_limit), cloud.config.page_limit)


def _ordered(cloud: RehearsalCloud, query: Query) -> list[Server]:
    key = query.get("sort_key")
    if key is None:
        return cloud.order
    if key in ("host", "node"):
        raise forbidden(f"Only administrators can sort servers by {key}")
    if key not in _SORT:
        raise invalid_query("sort_key", key, f"{key!r} is not one of {sorted(_SORT)}")
    direction = query.get("sort_dir", "desc")
    if direction not in ("asc", "desc"):
        raise bad_request("Invalid input received: Unknown sort direction, must be 'desc' or 'asc'")
    return sorted(cloud.order, key=_SORT[key], reverse=direction == "desc")  # type: ignore[arg-type]


def _from_marker(cloud: RehearsalCloud, caller: Caller, query: Query, known: list[Server]) -> Iterator[Server]:
    marker = query.get("marker")
    if marker is None:
        return iter(known)
    server = cloud.servers.get(marker)
    if server is None or not cloud.visible(caller, server):
        raise bad_request(f"marker [{marker}] not found")
    at = cloud.rank[marker] if known is cloud.order else known.index(server)
    return iter(known[at + 1 :])


def _tests(cloud: RehearsalCloud, caller: Caller, query: Query) -> tuple[list[Test], bool]:
    """What a server must meet, cheapest first, and whether deleted ones count."""
    minor = caller.minor
    if minor >= 75:
        for key in query:
            if key not in KNOWN and not key.startswith("_"):
                raise bad_request(f"{key!r} does not match any of the regexes: '^_'")
    tests: list[Test] = []
    since, before = _time(query, "changes-since"), _time(query, "changes-before") if minor >= 66 else None
    if since is not None and before is not None and since > before:
        raise bad_request("The value of changes-since must be less than or equal to changes-before.")
    if since is not None:
        tests.append(lambda s: int(s.updated) >= since)
    if before is not None:
        tests.append(lambda s: int(s.updated) <= before)
    tests += _status(caller, query)
    tests += _plain(caller, query)
    if minor >= 26:
        tests += _tags(query)
    if minor >= 73 and "locked" in query:
        wanted = query["locked"].lower() in ("true", "1", "on", "yes")
        tests.append(lambda s: s.locked == wanted)
    if "all_tenants" in query and query["all_tenants"].lower() in ("1", "true", "") and not caller.is_admin:
        raise forbidden("Policy doesn't allow os_compute_api:servers:detail:get_all_tenants to be performed.")
    everyone = caller.is_admin and "all_tenants" in query
    project = caller.user.project_id
    tests.append(lambda s: everyone or s.project_id == project)
    gone = cloud.faults.vanished(caller.now)
    if gone:
        tests.append(lambda s: s.id not in gone and s.name not in gone)
    return tests, since is not None or before is not None


def _status(caller: Caller, query: Query) -> list[Test]:
    if "status" not in query:
        return []
    wanted = {value.upper() for value in query.getall("status")}
    if not wanted & STATUSES:
        if caller.minor >= 38:
            raise bad_request("Invalid status value")
        return [lambda _: False]
    if "DELETED" in wanted and not caller.is_admin:
        raise forbidden("Only administrators may list deleted instances")
    # A status of rest asks for the vm_state alone: status=ACTIVE also lists the active servers that are shown as
    # REBUILD (seen on Zed).
    return [lambda s: s.status in wanted or STATUS[s.vm_state] in wanted]


def _plain(caller: Caller, query: Query) -> list[Test]:
    tests: list[Test] = []
    if "name" in query:
        pattern = _pattern("name", query["name"])
        tests.append(lambda s: pattern.search(s.name) is not None)
    if "hostname" in query and (caller.minor >= 90 or caller.is_admin):
        host = _pattern("hostname", query["hostname"])
        tests.append(lambda s: host.search(s.hostname) is not None)
    if "ip" in query:
        address = _pattern("ip", query["ip"])
        tests.append(lambda s: any(address.search(addr) for addr in s.fixed_addresses))
    exact: dict[str, Callable[[Server], object]] = {
        "image": lambda s: None if s.volume is not None else s.image,
        "flavor": lambda _: FLAVOR_ID,
    }
    if caller.minor >= 83 or caller.is_admin:
        exact |= {
            "availability_zone": lambda s: s.zone,
            "vm_state": lambda s: s.vm_state,
            "task_state": lambda s: s.task,
            "user_id": lambda s: s.user_id,
            "key_name": lambda s: s.key_name,
        }
    for key, value_of in exact.items():
        if key in query:
            wanted = query[key]
            tests.append(lambda s, value_of=value_of, wanted=wanted: value_of(s) == wanted)  # type: ignore[misc]
    return tests


def _tags(query: Query) -> list[Test]:
    tests: list[Test] = []
    rules: tuple[tuple[str, Callable[[frozenset[str], Server], bool]], ...] = (
        ("tags", lambda wanted, s: wanted.issubset(s.tags)),
        ("tags-any", lambda wanted, s: not wanted.isdisjoint(s.tags)),
        ("not-tags", lambda wanted, s: not wanted.issubset(s.tags)),
        ("not-tags-any", lambda wanted, s: wanted.isdisjoint(s.tags)),
    )
    for key, rule in rules:
        if key in query:
            if not query[key]:
                raise invalid_query(key, "", "'' is not a 'regex'")
            wanted = frozenset(query[key].split(","))
            tests.append(lambda s, rule=rule, wanted=wanted: rule(wanted, s))  # type: ignore[misc]
    return tests


def _pattern(field: str, value: str) -> re.Pattern[str]:
    """A regular expression, unanchored, in any case of letters; `|` in it is only itself (seen on Zed)."""
    try:
        if not value:
            raise re.error("empty")
        return re.compile(value.replace("|", r"\|"), re.IGNORECASE)
    except re.error:
        raise invalid_query(field, value, f"{value!r} is not a 'regex'") from None


def _time(query: Query, field: str) -> int | None:
    if field not in query:
        return None
    value = query[field]
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise invalid_query(field, value, f"{value!r} is not a 'date-time'") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
