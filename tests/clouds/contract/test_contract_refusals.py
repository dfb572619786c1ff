"""What a rebuild's body is refused for, in which words, and in which order things are checked."""

from typing import Any

import pytest

from tests.clouds.contract.target import Api, Document

NOWHERE = "00000000-0000-4000-8000-000000000000"
LONG = "n" * 256
KEYS = "does not match any of the regexes: '^[a-zA-Z0-9-_:. ]{1,255}$'"
NAMES = (
    "An invalid 'name' value was provided. The name must be: printable characters. "
    "Can not start or end with whitespace."
)


def _field(name: str, value: object, why: str) -> str:
    return f"Invalid input for field/attribute {name}. Value: {value}. {why}"


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("2.73", {"imageRef": NOWHERE}, "Cannot find image for rebuild"),
    ("2.73", {"imageRef": "image-b"}, _field("imageRef", "image-b", "'image-b' is not a 'uuid'")),
    ("2.73", {"imageRef": ""}, _field("imageRef", "", "'' is not a 'uuid'")),
    ("2.73", {"imageRef": None}, _field("imageRef", None, "None is not of type 'string'")),
    ("2.73", {"imageRef": 5}, _field("imageRef", 5, "5 is not of type 'string'")),
    ("2.73", {"name": ""}, _field("name", "", "'' is too short")),
    ("2.73", {"name": LONG}, _field("name", LONG, f"'{LONG}' is too long")),
    ("2.73", {"name": 5}, _field("name", 5, "5 is not of type 'string'")),
    ("2.73", {"name": None}, _field("name", None, "None is not of type 'string'")),
    ("2.73", {"name": "   "}, NAMES),
    ("2.73", {"name": " x"}, NAMES),
    ("2.73", {"name": "a\u0007b"}, NAMES),
    ("2.73", {"name": "a\U0001f600b"}, NAMES),
    ("2.73", {"metadata": []}, _field("metadata", [], "[] is not of type 'object'")),
    ("2.73", {"metadata": None}, _field("metadata", None, "None is not of type 'object'")),
    ("2.73", {"metadata": {"a/b": "v"}}, _field("metadata", {"a/b": "v"}, f"'a/b' {KEYS}")),
    ("2.73", {"metadata": {"": "v"}}, _field("metadata", {"": "v"}, f"'' {KEYS}")),
    ("2.73", {"metadata": {"k": 1}}, _field("k", 1, "1 is not of type 'string'")),
    ("2.73", {"metadata": {"k": None}}, _field("k", None, "None is not of type 'string'")),
    ("2.73", {"metadata": {"k": LONG}}, _field("k", LONG, f"'{LONG}' is too long")),
    (
        "2.73",
        {"OS-DCF:diskConfig": "auto"},
        _field("OS-DCF:diskConfig", "auto", "'auto' is not one of ['AUTO', 'MANUAL']"),
    ),
    ("2.73", {"accessIPv4": "x"}, _field("accessIPv4", "x", "'x' is not a 'ipv4'")),
    ("2.73", {"adminPass": 5}, _field("adminPass", 5, "5 is not of type 'string'")),
    ("2.73", {"description": 5}, _field("description", 5, "5 is not of type 'string', 'null'")),
    ("2.73", {"key_name": ""}, _field("key_name", "", "'' is not valid under any of the given schemas")),
    ("2.73", {"key_name": "no-such-key"}, "Invalid key_name provided."),
    ("2.73", {"user_data": 5}, _field("user_data", 5, "5 is not valid under any of the given schemas")),
    ("2.73", {"trusted_image_certificates": []}, _field("trusted_image_certificates", [], "[] is too short")),
    ("2.90", {"hostname": "x"}, _field("hostname", "x", "'x' is too short")),
    (
        "2.90",
        {"hostname": "x_yz"},
        _field("hostname", "x_yz", "'x_yz' does not match '^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$'"),
    ),
]


@pytest.mark.parametrize(("version", "fields", "message"), FIELDS, ids=[str(f[1])[:50] for f in FIELDS])
async def test_a_wrong_field_is_400(
    api: Api, server: Document, other_image: str, *, version: str, fields: dict[str, Any], message: str
) -> None:
    answer = await api.rebuild(server["id"], version=version, **{"imageRef": other_image, **fields})
    assert answer.refusal == (400, "badRequest", message)


UNKNOWN = [
    ("2.73", "colour", "blue"),
    ("2.73", "flavorRef", "1"),
    ("2.73", "hostname", "abc"),
    ("2.73", "personality", []),
    ("2.18", "description", "d"),
    ("2.53", "key_name", None),
    ("2.56", "user_data", None),
    ("2.62", "trusted_image_certificates", None),
]


@pytest.mark.parametrize(("version", "field", "value"), UNKNOWN, ids=[f"{u[1]}-{u[0]}" for u in UNKNOWN])
async def test_a_field_that_the_microversion_does_not_know_is_400(
    api: Api, server: Document, other_image: str, *, version: str, field: str, value: object
) -> None:
    fields = {"imageRef": other_image, field: value}
    answer = await api.rebuild(server["id"], version=version, **fields)
    why = f"Additional properties are not allowed ('{field}' was unexpected)"
    assert answer.refusal == (400, "badRequest", _field("rebuild", fields, why))


BODIES: list[tuple[bytes, str]] = [
    (b"", "Malformed request body"),
    (b"{bad", "Malformed request body"),
    (b"{}", "Malformed request body"),
    (b"[]", "Malformed request body"),
    (b'{"rebuild": {}, "os-stop": null}', "Malformed request body"),
    (b'{"rebuildd": null}', "There is no such action: rebuildd"),
    (b'{"rebuild": null}', _field("rebuild", None, "None is not of type 'object'")),
    (b'{"rebuild": []}', _field("rebuild", [], "[] is not of type 'object'")),
    (b'{"rebuild": {"name": "x"}}', _field("rebuild", {"name": "x"}, "'imageRef' is a required property")),
]


@pytest.mark.parametrize(("data", "message"), BODIES, ids=[b[0].decode() for b in BODIES])
async def test_a_body_that_is_no_action_is_400(api: Api, server: Document, data: bytes, message: str) -> None:
    answer = await api("POST", f"/servers/{server['id']}/action", data=data)
    assert answer.refusal == (400, "badRequest", message)


async def test_a_body_over_114688_bytes_is_413_in_html(api: Api, server: Document, other_image: str) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image, name="x" * 114688)
    assert answer.status == 413
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "Request is too large. Larger than max_request_body_size (114688)." in answer.text


async def test_128_items_of_metadata_are_taken_and_129_are_403(api: Api, server: Document, other_image: str) -> None:
    many = {f"k{n}": "v" for n in range(129)}
    refused = await api.rebuild(server["id"], imageRef=other_image, metadata=many)
    assert refused.refusal == (403, "forbidden", "Maximum number of metadata items exceeds 128")
    del many["k0"]
    assert (await api.rebuild(server["id"], imageRef=other_image, metadata=many)).status == 202


async def test_a_name_of_255_characters_is_taken(api: Api, server: Document, other_image: str) -> None:
    answer = await api.rebuild(server["id"], imageRef=other_image, name="n" * 255)
    assert answer.status == 202


async def test_user_data_that_is_only_loosely_base64_is_taken(api: Api, server: Document, other_image: str) -> None:
    assert (await api.rebuild(server["id"], imageRef=other_image, user_data="***")).status == 202
    await api.at_rest(server["id"])
    assert (await api.rebuild(server["id"], imageRef=other_image, user_data=None)).status == 202


@pytest.mark.parametrize("server_id", [NOWHERE, "zz"])
async def test_an_unknown_server_is_404(api: Api, server_id: str, images: list[str]) -> None:
    answer = await api.rebuild(server_id, imageRef=images[0])
    assert answer.refusal == (404, "itemNotFound", f"Instance {server_id} could not be found.")


async def test_a_simple_action_on_an_unknown_server_is_404_in_other_words(api: Api) -> None:
    answer = await api.act("zz", {"os-stop": None})
    assert answer.refusal == (404, "itemNotFound", "Instance zz has no mapping to a cell.")


async def test_the_body_is_checked_before_the_server(api: Api) -> None:
    answer = await api.rebuild(NOWHERE, imageRef="x")
    assert answer.refusal == (400, "badRequest", _field("imageRef", "x", "'x' is not a 'uuid'"))


async def test_the_lock_is_checked_before_the_image(api: Api, server: Document) -> None:
    await api.act(server["id"], {"lock": None})
    answer = await api.rebuild(server["id"], imageRef=NOWHERE)
    assert answer.refusal == (409, "conflictingRequest", f"Instance {server['id']} is locked")
