"""Lists of servers: pages, filters, changes-since."""

import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from tests.clouds.contract.target import Answer, Api, Document, next_second

NOWHERE = "00000000-0000-4000-8000-000000000000"


def _names(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [s["name"] for s in answer.json["servers"]]


async def test_pages_follow_each_other_without_gap_or_repeat(api: Api) -> None:
    whole = (await api("GET", "/servers?limit=1000")).json["servers"]
    size = len(whole) // 3
    seen: list[str] = []
    url: str | None = f"/servers?limit={size}"
    while url:
        page = (await api("GET", url)).json
        seen += [s["id"] for s in page["servers"]]
        links = page.get("servers_links", [])
        url = links[0]["href"] if links else None
        assert all(link["rel"] == "next" for link in links)
    assert seen == [s["id"] for s in whole]


async def test_a_page_that_is_exactly_full_links_to_an_empty_one(api: Api) -> None:
    whole = (await api("GET", "/servers?limit=1000")).json["servers"]
    page = (await api("GET", f"/servers?limit={len(whole)}")).json
    assert len(page["servers"]) == len(whole)
    (link,) = page["servers_links"]
    assert (await api("GET", link["href"])).json == {"servers": []}


async def test_the_order_is_created_descending(api: Api) -> None:
    servers = (await api("GET", "/servers/detail?limit=1000")).json["servers"]
    created = [s["created"] for s in servers]
    assert created == sorted(created, reverse=True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=-1", "Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'"),
        ("limit=x", "Invalid input for query parameters limit. Value: x. 'x' does not match '^[0-9]*$'"),
        (f"marker={NOWHERE}", f"marker [{NOWHERE}] not found"),
        ("status=NONSENSE", "Invalid status value"),
        (
            "changes-since=abc",
            "Invalid input for query parameters changes-since. Value: abc. 'abc' is not a 'date-time'",
        ),
        ("name=(", "Invalid input for query parameters name. Value: (. '(' is not a 'regex'"),
        ("name=", "Invalid input for query parameters name. Value: . '' is not a 'regex'"),
        ("tags=", "Invalid input for query parameters tags. Value: . '' is not a 'regex'"),
        ("sort_key=created_at&sort_dir=up", "Invalid input received: Unknown sort direction, must be 'desc' or 'asc'"),
    ],
)
async def test_a_bad_query_is_400(api: Api, query: str, message: str) -> None:
    assert (await api("GET", f"/servers/detail?{query}")).refusal == (400, "badRequest", message)


async def test_an_unknown_parameter_is_ignored_up_to_2_74_and_400_from_2_75(api: Api) -> None:
    assert _names(await api("GET", "/servers?limit=1&colour=red", version="2.74"))
    answer = await api("GET", "/servers?limit=1&colour=red", version="2.75")
    assert answer.refusal == (400, "badRequest", "'colour' does not match any of the regexes: '^_'")


async def test_a_status_that_there_is_not_gives_an_empty_list_below_2_38(api: Api) -> None:
    assert _names(await api("GET", "/servers?status=NONSENSE", version="2.1")) == []


async def test_limit_0_gives_none_and_no_link(api: Api) -> None:
    assert (await api("GET", "/servers?limit=0")).json == {"servers": []}


async def test_a_limit_beyond_the_clouds_is_cut_without_a_word(api: Api) -> None:
    assert _names(await api("GET", "/servers?limit=5000")) == _names(await api("GET", "/servers?limit=1000"))


async def test_the_last_of_a_repeated_limit_counts(api: Api) -> None:
    assert len(_names(await api("GET", "/servers?limit=1&limit=2"))) == 2


async def test_name_is_an_unanchored_regular_expression_in_any_case(api: Api, server: Document) -> None:
    name = server["name"]
    assert name in _names(await api("GET", f"/servers?name={name[1:-1]}"))
    assert _names(await api("GET", f"/servers?name=^({re.escape(name)})$")) == [name]
    assert _names(await api("GET", f"/servers?name=^{re.escape(name.upper())}$")) == [name]
    assert _names(await api("GET", f"/servers?name=^{name[1:]}$")) == []
    assert _names(await api("GET", f"/servers?name={name}|{name}")) == [], "alternatives are not understood"


async def test_status_is_taken_in_any_case_and_several_times(api: Api, server: Document) -> None:
    assert server["name"] in _names(await api("GET", "/servers?status=active"))
    assert server["name"] in _names(await api("GET", "/servers?status=SHUTOFF&status=ACTIVE"))
    assert server["name"] not in _names(await api("GET", "/servers?status=SHUTOFF"))


@pytest.mark.parametrize("query", ["status=SHUTOFF&status=ACTIVE", "status=ACTIVE&status=SHUTOFF"])
async def test_the_next_link_keeps_only_one_of_several_statuses(api: Api, query: str) -> None:
    page = (await api("GET", f"/servers?{query}&limit=1")).json
    following = page["servers_links"][0]["href"].split("?")[1]
    assert following == f"limit=1&status=SHUTOFF&marker={page['servers'][0]['id']}"


async def test_image_filters_by_id(api: Api, server: Document) -> None:
    assert server["name"] in _names(await api("GET", f"/servers?image={server['image']['id']}"))
    assert _names(await api("GET", f"/servers?image={NOWHERE}")) == []


async def test_the_zone_filters_from_2_83(api: Api, server: Document) -> None:
    zone = server["OS-EXT-AZ:availability_zone"]
    shown = (await api("GET", f"/servers/detail?availability_zone={zone}", version="2.83")).json["servers"]
    assert server["id"] in [s["id"] for s in shown]
    assert {s["OS-EXT-AZ:availability_zone"] for s in shown} == {zone}


SINCE_2_83 = ["availability_zone=nowhere", "vm_state=stopped", "task_state=rebuilding", "user_id=x", "key_name=x"]


@pytest.mark.parametrize("query", SINCE_2_83)
async def test_these_filters_are_ignored_for_a_user_below_2_83(api: Api, server: Document, query: str) -> None:
    narrowed = f"/servers?name=^{server['name']}$&{query}"
    assert _names(await api("GET", narrowed, version="2.82")) == [server["name"]]
    assert _names(await api("GET", narrowed, version="2.83")) == []


async def test_metadata_and_uuid_filter_nothing_for_a_user(api: Api, server: Document) -> None:
    everything = _names(await api("GET", "/servers?limit=1000"))
    assert _names(await api("GET", '/servers?metadata={"role":"nonsense"}')) == everything
    assert _names(await api("GET", f"/servers?uuid={server['id']}")) == everything


async def test_tags_filter_from_2_26_and_are_ignored_below(api: Api, server: Document) -> None:
    everything = _names(await api("GET", "/servers?limit=1000"))
    tags = {"tags": ["contract-a", "contract-b"]}
    assert (await api("PUT", f"/servers/{server['id']}/tags", tags)).json == tags
    assert _names(await api("GET", "/servers?tags=contract-a,contract-b")) == [server["name"]]
    assert _names(await api("GET", "/servers?tags=contract-a,contract-c")) == []
    assert _names(await api("GET", "/servers?tags-any=contract-a,contract-c")) == [server["name"]]
    assert server["name"] not in _names(await api("GET", "/servers?not-tags=contract-a&limit=1000"))
    assert server["name"] not in _names(await api("GET", "/servers?not-tags-any=contract-a,x&limit=1000"))
    assert _names(await api("GET", "/servers?tags=contract-a", version="2.25")) == everything


async def test_locked_filters_from_2_73(api: Api, server: Document) -> None:
    await api.act(server["id"], {"lock": None})
    assert server["name"] in _names(await api("GET", "/servers?locked=true"))
    assert server["name"] not in _names(await api("GET", "/servers?locked=false&limit=1000"))
    assert server["name"] in _names(await api("GET", "/servers?locked=false&limit=1000", version="2.72"))


@pytest.mark.parametrize("query", ["status=DELETED", "all_tenants=1", "sort_key=host"])
async def test_what_only_administrators_may_ask_is_403(api: Api, query: str) -> None:
    status, kind, _ = (await api("GET", f"/servers/detail?{query}")).refusal
    assert (status, kind) == (403, "forbidden")


async def test_changes_since_is_inclusive_and_to_the_second(api: Api, server: Document) -> None:
    await next_second()
    await api("PUT", f"/servers/{server['id']}", {"server": {"name": server["name"]}})
    updated = datetime.fromisoformat((await api.server(server["id"]))["updated"])
    at, after = (f"{t:%Y-%m-%dT%H:%M:%SZ}" for t in (updated, updated + timedelta(seconds=1)))
    assert server["name"] in _names(await api("GET", f"/servers?changes-since={at}"))
    assert server["name"] not in _names(await api("GET", f"/servers?changes-since={after}"))


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%%2B00:00", "%Y-%m-%d"])
async def test_changes_since_takes_these_forms_of_time_as_utc(api: Api, form: str) -> None:
    long_ago = datetime(2020, 1, 1, tzinfo=UTC).strftime(form)
    listed = set(_names(await api("GET", "/servers?limit=1000")))
    assert listed <= set(_names(await api("GET", f"/servers?changes-since={long_ago}&limit=1000")))


async def test_changes_since_goes_with_other_filters(api: Api, server: Document) -> None:
    query = "changes-since=2020-01-01T00:00:00Z"
    assert _names(await api("GET", f"/servers?{query}&name=^{server['name']}$&status=ACTIVE")) == [server["name"]]
    assert _names(await api("GET", f"/servers?{query}&name=^{server['name']}$&status=SHUTOFF")) == []
    assert _names(await api("GET", "/servers?changes-since=2090-01-01T00:00:00Z")) == []


async def test_a_server_in_a_list_lacks_nothing_but_its_groups(api: Api, server: Document) -> None:
    (listed,) = (await api("GET", f"/servers/detail?name=^{server['name']}$")).json["servers"]
    alone = await api.server(server["id"])
    assert alone.pop("server_groups") == []
    assert listed == alone


FIELDS = [
    ("2.1", {"OS-EXT-STS:task_state", "OS-SRV-USG:launched_at"}, {"locked", "tags", "description"}),
    ("2.9", {"locked"}, {"description", "tags", "locked_reason"}),
    ("2.19", {"locked", "description"}, {"tags"}),
    ("2.26", {"locked", "description", "tags"}, {"locked_reason"}),
    ("2.73", {"locked", "locked_reason", "tags"}, {"OS-EXT-SRV-ATTR:hostname"}),
    ("2.90", {"OS-EXT-SRV-ATTR:hostname"}, {"user_data"}),
]


@pytest.mark.parametrize(("version", "there", "not_there"), FIELDS, ids=[f[0] for f in FIELDS])
async def test_fields_come_with_their_microversion_in_lists_and_alone(
    api: Api, version: str, there: set[str], not_there: set[str]
) -> None:
    (listed,) = (await api("GET", "/servers/detail?limit=1", version=version)).json["servers"]
    for shown in (listed, await api.server(listed["id"], version=version)):
        assert there <= shown.keys()
        assert not not_there & shown.keys()
    assert ("links" in listed["flavor"]) == (version in ("2.1", "2.9", "2.19", "2.26"))


async def test_the_list_without_detail_has_id_name_and_links(api: Api) -> None:
    (server,) = (await api("GET", "/servers?limit=1")).json["servers"]
    assert server.keys() == {"id", "name", "links"}
    assert server["links"][0] == {"rel": "self", "href": f"{api.target.compute}/servers/{server['id']}"}


@pytest.mark.parametrize("server_id", [NOWHERE, "zz"])
async def test_an_unknown_server_is_404(api: Api, server_id: str) -> None:
    message = f"Instance {server_id} could not be found."
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/os-instance-actions")):
        assert (await api(method, f"/servers/{server_id}{path}")).refusal == (404, "itemNotFound", message)


async def test_addresses_say_their_version_and_whether_they_float(api: Api) -> None:
    for server in (await api("GET", "/servers/detail?limit=1000")).json["servers"]:
        for listed in server["addresses"].values():
            for entry in listed:
                assert set(entry) == {"addr", "version", "OS-EXT-IPS:type", "OS-EXT-IPS-MAC:mac_addr"}
                assert ip_address(entry["addr"]).version == entry["version"]
                assert entry["OS-EXT-IPS:type"] in ("fixed", "floating")
