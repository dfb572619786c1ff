"""Nova's checks of bodies, in its words. They come before any server is looked at."""

import base64
import binascii
import ipaddress
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.rehearsal.refusals import Refusal, bad_request, unexpected

_KEY = r"^[a-zA-Z0-9-_:. ]{1,255}$"
_HOSTNAME = r"^[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+$"
_YES = [True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes"]
_NO = [False, "False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no"]

Check = Callable[[str, Any], None]


def invalid(field: str, value: object, why: str) -> Refusal:
    """The 400 of a field."""
    return bad_request(f"Invalid input for field/attribute {field}. Value: {value}. {why}")


def invalid_query(field: str, value: object, why: str) -> Refusal:
    """The 400 of a query parameter."""
    return bad_request(f"Invalid input for query parameters {field}. Value: {value}. {why}")


def required(document: object, key: str) -> Any:
    """The value of the body's one key. 400 where it is missing."""
    if not isinstance(document, dict):
        raise bad_request("Malformed request body")
    if key not in document:
        raise bad_request(f"'{key}' is a required property")
    return document[key]


def _string(field: str, value: Any, *, least: int = 0, most: int | None = None) -> None:
    if not isinstance(value, str):
        raise invalid(field, value, f"{value!r} is not of type 'string'")
    if len(value) < least:
        raise invalid(field, value, f"{value!r} is too short")
    if most is not None and len(value) > most:
        raise invalid(field, value, f"{value!r} is too long")


def name(field: str, value: Any) -> None:
    """1 to 255 printable characters, no blanks at the ends, none beyond the BMP."""
    _string(field, value, least=1, most=255)
    if value != value.strip() or any(ord(c) > 0xFFFF or not (c.isprintable() or c == " ") for c in value):
        raise bad_request(
            "An invalid 'name' value was provided. The name must be: printable characters. "
            "Can not start or end with whitespace."
        )


def metadata(field: str, value: Any) -> None:
    """Strings of up to 255 under keys of a narrow alphabet."""
    if not isinstance(value, dict):
        raise invalid(field, value, f"{value!r} is not of type 'object'")
    for key in value:
        if not re.match(_KEY, key):
            raise invalid(field, value, f"{key!r} does not match any of the regexes: '{_KEY}'")
    for key, item in value.items():
        _string(key, item, most=255)
        if any(ord(c) > 0xFFFF for c in item):
            raise Refusal(500, "computeFault", unexpected("oslo_db.exception.DBError"))


def tags(value: Any) -> list[str]:
    """At most 50 tags, without commas and slashes."""
    if not isinstance(value, list):
        raise invalid("tags", value, f"{value!r} is not of type 'array'")
    if len(value) > 50:
        raise invalid("tags", value, f"{value!r} is too long")
    for index, tag in enumerate(value):
        _string(str(index), tag, least=1, most=60)
        if re.search(r"[,/]", tag):
            raise invalid(str(index), tag, f"{tag!r} does not match '^[^,/]*$'")
    return value


def _image_ref(field: str, value: Any) -> None:
    _string(field, value)
    try:
        uuid.UUID(value)
    except ValueError:
        raise invalid(field, value, f"{value!r} is not a 'uuid'") from None


def _one_of(options: list[Any]) -> Check:
    def check(field: str, value: Any) -> None:
        if not any(value is o or (isinstance(value, str) and value == o) for o in options):
            raise invalid(field, value, f"{value!r} is not one of {options}")

    return check


def _address(version: int) -> Check:
    def check(field: str, value: Any) -> None:
        _string(field, value)
        try:
            right = ipaddress.ip_address(value).version == version
        except ValueError:
            right = False
        if not right:
            raise invalid(field, value, f"{value!r} is not a 'ipv{version}'")

    return check


def _nullable(most: int) -> Check:
    def check(field: str, value: Any) -> None:
        if value is not None and not isinstance(value, str):
            raise invalid(field, value, f"{value!r} is not of type 'string', 'null'")
        if value is not None:
            _string(field, value, most=most)

    return check


def _either(good: Callable[[str], bool]) -> Check:
    def check(field: str, value: Any) -> None:
        if value is not None and not (isinstance(value, str) and good(value)):
            raise invalid(field, value, f"{value!r} is not valid under any of the given schemas")

    return check


def _is_base64(value: str) -> bool:
    """As Nova's lenient decoder sees it: foreign characters are skipped."""
    try:
        base64.b64decode(value)
    except (binascii.Error, ValueError):
        return False
    return True


def _hostname(field: str, value: Any) -> None:
    _string(field, value, least=2, most=63)
    if not re.match(_HOSTNAME, value):
        raise invalid(field, value, f"{value!r} does not match '{_HOSTNAME}'")


def _certificates(field: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list):
        raise invalid(field, value, f"{value!r} is not of type 'array', 'null'")
    if not value:
        raise invalid(field, value, f"{value!r} is too short")


def _anything(field: str, value: Any) -> None:
    """`personality`: taken and ignored."""


REBUILD_FIELDS: Mapping[str, tuple[int, int, Check]] = {
    "imageRef": (1, 999, _image_ref),
    "name": (1, 999, name),
    "metadata": (1, 999, metadata),
    "adminPass": (1, 999, _string),
    "preserve_ephemeral": (1, 999, _one_of([*_YES, *_NO])),
    "OS-DCF:diskConfig": (1, 999, _one_of(["AUTO", "MANUAL"])),
    "accessIPv4": (1, 999, _address(4)),
    "accessIPv6": (1, 999, _address(6)),
    "personality": (1, 56, _anything),
    "description": (19, 999, _nullable(255)),
    "key_name": (54, 999, _either(lambda v: 1 <= len(v) <= 255)),
    "user_data": (57, 999, _either(lambda v: len(v) <= 65535 and _is_base64(v))),
    "trusted_image_certificates": (63, 999, _certificates),
    "hostname": (90, 999, _hostname),
}
"""Each field of a rebuild with the first and last microversion (2.N) that knows it."""


def rebuild(asked: Any, minor: int) -> dict[str, Any]:
    """The fields of a rebuild; 400 for the first that is wrong."""
    if not isinstance(asked, dict):
        raise invalid("rebuild", asked, f"{asked!r} is not of type 'object'")
    if "imageRef" not in asked:
        raise invalid("rebuild", asked, "'imageRef' is a required property")
    only("rebuild", asked, {f for f, (first, last, _) in REBUILD_FIELDS.items() if first <= minor <= last})
    for field, value in asked.items():
        REBUILD_FIELDS[field][2](field, value)
    return asked


def only(field: str, value: dict[str, Any], known: set[str]) -> None:
    """400 where there is more in it than known."""
    if extra := sorted(set(value) - known):
        names = ", ".join(repr(x) for x in extra)
        verb = "was" if len(extra) == 1 else "were"
        raise invalid(field, value, f"Additional properties are not allowed ({names} {verb} unexpected)")
