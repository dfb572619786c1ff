"""What a rebuilt server gets: `rebuild`, a server's own `image` and `rebuild`, and `os` of Huawei's methods."""

import base64
import binascii
import hashlib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.domain.spec.codes import Code, refusal
from orchestrator.domain.spec.text import METADATA_KEY, server_name_fault
from orchestrator.domain.spec.types import ImageRef, MetadataChange, SecretPlace, Strict, Text

MAX_USER_DATA = 65535
"""Characters of base64 that Nova takes; about 48 KiB of content."""

PLACEHOLDER = re.compile(r"\{(?:name|id|metadata\.(?P<key>[^{}]*))\}")


def _template(value: str) -> str:
    literal = PLACEHOLDER.sub("", value)
    if "{" in literal or "}" in literal:
        raise refusal(Code.INVALID_VALUE, "knows the placeholders {name}, {id} and {metadata.KEY} only")
    for match in PLACEHOLDER.finditer(value):
        if match["key"] is not None and METADATA_KEY.fullmatch(match["key"]) is None:
            raise refusal(Code.INVALID_VALUE, "names something in {metadata.KEY} that can't be a metadata key")
    # A placeholder stands for at least one character, none of them a blank.
    if fault := server_name_fault(PLACEHOLDER.sub("x", value)):
        raise refusal(Code.INVALID_VALUE, fault)
    return value


NameTemplate = Annotated[str, AfterValidator(_template)]
"""A server's new name; `{name}`, `{id}` and `{metadata.KEY}` stand for what the server has now."""


class UserData(Strict):
    """User data for the new system, given in exactly one way. Never logged and never shown."""

    text: str | None = Field(default=None, repr=False)
    """As it is, in UTF-8."""
    base64: str | None = Field(default=None, repr=False)
    """Encoded; line breaks are allowed."""
    ref: SecretPlace | None = None
    """Where the worker finds it."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.text, self.base64, self.ref)) != 1:
            raise refusal(Code.IMPOSSIBLE, "must be given in exactly one way: text, base64 or ref")
        if self.ref is None:
            content = self._decoded()
            if not content:
                raise refusal(Code.TOO_SHORT, "is empty: leave user_data out to keep what the server has")
            if (size := len(base64.b64encode(content))) > MAX_USER_DATA:
                raise refusal(
                    Code.TOO_LONG,
                    f"is {size} bytes in base64; the cloud takes {MAX_USER_DATA}: let it fetch the rest by itself",
                )
        return self

    @classmethod
    def of(cls, content: bytes) -> Self:
        """User data of these bytes."""
        return cls(base64=base64.b64encode(content).decode())

    @property
    def content(self) -> bytes:
        """The user data itself, decoded. Raises `ValueError` for a `ref`, which only a worker can resolve."""
        if self.ref is not None:
            raise ValueError("user data by reference is resolved in the worker")
        return self._decoded()

    def _decoded(self) -> bytes:
        try:
            if self.text is not None:
                return self.text.encode()
            return base64.b64decode("".join((self.base64 or "").split()), validate=True)
        except (binascii.Error, ValueError):
            wrong = "text that UTF-8 can't write" if self.text is not None else "not base64"
            raise refusal(Code.INVALID_VALUE, f"is {wrong}") from None

    @property
    def encoded(self) -> str:
        """Base64, as the cloud wants it."""
        return base64.b64encode(self.content).decode()

    def shown(self) -> dict[str, Any]:
        """All that may be shown of it: its size in bytes and its SHA-256, or where it comes from."""
        if self.ref is not None:
            return {"ref": self.ref}
        return {"size": len(self.content), "sha256": hashlib.sha256(self.content).hexdigest()}


class RebuildSpec(Strict):
    """What every server of the plan gets besides the image; what isn't given stays as it is."""

    name: NameTemplate | None = None
    metadata: MetadataChange | None = None
    """Keys to set; null removes one."""
    metadata_mode: Literal["merge", "replace"] = "merge"
    """merge keeps the server's other keys; replace drops them, as the cloud's API by itself does."""
    user_data: UserData | None = None
    key_name: Text | None = None
    reimage_boot_volume: bool = False
    """Consent to wipe the boot volume of volume-booted servers; without it they are refused."""

    @model_validator(mode="after")
    def _nulls_need_merge(self) -> Self:
        if self.metadata_mode == "replace":
            if self.metadata is None:
                raise refusal(
                    Code.IMPOSSIBLE, "metadata_mode: replace needs metadata to put in the place of what is there"
                )
            if gone := [key for key, value in self.metadata.items() if value is None]:
                raise refusal(
                    Code.IMPOSSIBLE,
                    f"metadata {', '.join(gone)}: null removes a key and needs metadata_mode: merge; "
                    "with replace leave the key out",
                )
        return self


class ServerRebuild(Strict):
    """What one server gets otherwise than the plan says."""

    name: NameTemplate | None = None
    metadata: MetadataChange | None = None
    """Laid over the plan's own metadata, key by key."""
    user_data: UserData | None = None
    key_name: Text | None = None


class Overrides(Strict):
    """A server's own image and rebuild fields; the ledger keeps them as `jobs.overrides`."""

    image: ImageRef | None = None
    rebuild: ServerRebuild | None = None


class SecretRef(Strict):
    """A secret, by the place where the worker finds it."""

    ref: SecretPlace


class OsSpec(Strict):
    """What Huawei's reinstall_os and change_os ask for."""

    user_id: Text
    admin_pass: SecretRef
    stop_server: bool = True
    auto_pay: bool = False
