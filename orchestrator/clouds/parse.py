"""JSON of Nova and Glance → the protocol's frozen data. Secrets (`adminPass`, `user_data`) are never picked up.

Fields that a microversion or a policy leaves out are absent from the result; what can't be a server, an action or an
image at all raises `CloudAnswerInvalid`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from orchestrator.clouds.protocol import Action, ActionEvent, Image, Server
from orchestrator.errors import CloudAnswerInvalid


def parse_json(body: bytes) -> Mapping[str, Any]:
    """The JSON object of a body. Raises `CloudAnswerInvalid` for HTML, truncated or other text."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise CloudAnswerInvalid("The cloud's answer is not JSON.") from None
    if not isinstance(value, Mapping):
        raise CloudAnswerInvalid("The cloud's answer is not a JSON object.")
    return value


def parse_objects(value: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    """The list of objects under `key`. Raises `CloudAnswerInvalid`."""
    items = value.get(key)
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise CloudAnswerInvalid(f"The cloud's answer has no list {key!r}.")
    return items


def parse_object(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key`. Raises `CloudAnswerInvalid`."""
    item = value.get(key)
    if not isinstance(item, Mapping):
        raise CloudAnswerInvalid(f"The cloud's answer has no {key!r}.")
    return item


def parse_server(raw: Mapping[str, Any]) -> Server:
    """A server of GET /servers/detail, of GET /servers/{id} or of the 202 to a rebuild."""
    image = raw.get("image")
    links = raw.get("links")
    metadata = _mapping(raw.get("metadata"))
    return Server(
        id=_needed(raw, "id"),
        name=str(raw.get("name") or ""),
        status=_needed(raw, "status").upper(),
        task_state=_text(raw.get("OS-EXT-STS:task_state")),
        vm_state=_text(raw.get("OS-EXT-STS:vm_state")),
        image=_text(image.get("id")) if isinstance(image, Mapping) else _text(image),
        volume_booted=image == "",
        launched_at=parse_time(raw.get("OS-SRV-USG:launched_at")),
        updated=parse_time(raw.get("updated")),
        created=parse_time(raw.get("created")),
        metadata={str(k): str(v) for k, v in metadata.items()},
        tags=tuple(str(t) for t in _list(raw.get("tags"))),
        zone=_text(raw.get("OS-EXT-AZ:availability_zone")),
        host=_text(raw.get("OS-EXT-SRV-ATTR:host")) or _text(raw.get("hostId")),
        host_id=_text(raw.get("hostId")),
        locked=raw.get("locked") is True,
        project_id=_text(raw.get("tenant_id")),
        user_id=_text(raw.get("user_id")),
        flavor=_mapping(raw.get("flavor")),
        addresses=_mapping(raw.get("addresses")),
        links=tuple(link for link in _list(links) if isinstance(link, Mapping)),
        disk_config=_text(raw.get("OS-DCF:diskConfig")),
        progress=_int(raw.get("progress")),
        fault_code=_int(_mapping(raw.get("fault")).get("code")),
        fault_message=_text(_mapping(raw.get("fault")).get("message")),
        key_name=_text(raw.get("key_name")),
    )


def parse_action(raw: Mapping[str, Any]) -> Action:
    """An instance action of a list (no events) or by itself (events from microversion 2.51, nova-facts 6)."""
    started = parse_time(raw.get("start_time"))
    if started is None:
        raise CloudAnswerInvalid("An instance action of the cloud's answer has no start_time.")
    return Action(
        request_id=_needed(raw, "request_id"),
        action=_needed(raw, "action"),
        start_time=started,
        user_id=_text(raw.get("user_id")),
        message=_text(raw.get("message")),
        events=tuple(
            ActionEvent(
                event=str(event.get("event") or ""),
                result=_text(event.get("result")),
                start_time=parse_time(event.get("start_time")),
                finish_time=parse_time(event.get("finish_time")),
            )
            for event in _list(raw.get("events"))
            if isinstance(event, Mapping)
        ),
    )


def parse_image(raw: Mapping[str, Any]) -> Image:
    """An image of Glance's v2 API."""
    return Image(
        id=_needed(raw, "id"),
        name=str(raw.get("name") or ""),
        status=_needed(raw, "status").lower(),
        min_disk=_int(raw.get("min_disk")) or 0,
        min_ram=_int(raw.get("min_ram")) or 0,
    )


def parse_time(value: object) -> datetime | None:
    """A time as Nova writes it, with `Z`, an offset, or no zone at all (then UTC); None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def parse_http_date(value: str | None) -> datetime | None:
    """A `Date` or `Retry-After` header as an aware time in UTC; None where absent or malformed."""
    try:
        time = parsedate_to_datetime(value or "")
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def plain(text: str) -> str:
    """Text without HTML's tags, on one line."""
    text = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", " ", text) if "<" in text else text
    text = re.sub(r"</?[a-zA-Z!][^<>]*>", " ", text)
    return " ".join(text.split())


def _needed(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise CloudAnswerInvalid(f"The cloud's answer lacks {key!r}.")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
