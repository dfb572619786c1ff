"""Which servers a plan is about: `targets`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from orchestrator.domain.spec.codes import Code, Refusals, refusal
from orchestrator.domain.spec.rebuild import Overrides
from orchestrator.domain.spec.types import (
    SERVER_ID_REMEDY,
    Count,
    ImageRef,
    Listed,
    MetadataFilter,
    ServerId,
    ServerIdSet,
    Strict,
    Text,
    server_id,
)

STORED = "stored"
"""Validation context: the document comes from the ledger, where the explicit servers are kept apart."""

STATUSES = frozenset(
    {
        "ACTIVE", "BUILD", "ERROR", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD", "RESCUE",
        "RESIZE", "REVERT_RESIZE", "SHELVED", "SHELVED_OFFLOADED", "SHUTOFF", "SUSPENDED", "UNKNOWN", "VERIFY_RESIZE",
    }
)  # fmt: skip
"""What Nova and ECS call a server's status; deleted ones can't be targets."""


def _status(value: str) -> str:
    if value.upper() not in STATUSES:
        raise refusal(Code.INVALID_VALUE, f"is no status of a server; known are {', '.join(sorted(STATUSES))}")
    return value.upper()


ServerStatus = Annotated[str, AfterValidator(_status)]


class Select(Strict):
    """Servers by what they are; all filters that are given must match."""

    name: Text | None = None
    """A pattern for the whole name, in which * ? [abc] [!abc] stand for others; case counts."""
    metadata: MetadataFilter | None = None
    """All pairs must be there."""
    tags: Annotated[Listed[Text], Field(min_length=1)] | None = None
    """All tags must be there."""
    availability_zone: Annotated[Listed[Text], Field(min_length=1)] | None = None
    """One of them."""
    image: ImageRef | None = None
    """The image that they have now: id, URL or exact name."""
    status: Annotated[Listed[ServerStatus], Field(min_length=1)] | None = None
    """One of them."""
    enterprise_project: Text | None = None
    """Huawei's enterprise project."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not any(value is not None for _, value in self):
            raise refusal(Code.TOO_SHORT, 'is empty, which would mean every server; to mean that, write name: "*"')
        return self


class Exclude(Strict):
    """Servers to leave out, whether they are named or selected; one match is enough."""

    servers: ServerIdSet = frozenset()
    metadata: MetadataFilter | None = None
    """Any of these pairs."""
    tags: Listed[Text] = ()
    """Any of these tags."""


class ServerEntry(Overrides):
    """One server, by id or by exact name, with what it gets otherwise than the plan says."""

    id: ServerId | None = None
    find: Text | None = None
    """Its exact name; none or several servers of that name reject the plan, with the candidates."""

    @model_validator(mode="after")
    def _by_id_or_name(self) -> Self:
        if (self.id is None) == (self.find is None):
            raise refusal(Code.IMPOSSIBLE, "must name its server in exactly one way: id or find")
        return self

    def overrides(self) -> dict[str, Any] | None:
        """The document of its `Overrides`, None where it has none."""
        return self.model_dump(mode="json", include={"image", "rebuild"}, exclude_none=True) or None


def _entries(value: object) -> tuple[str | ServerEntry, ...]:
    """Plain ids, the bulk of large plans, stay plain texts; a model is made only for what says more."""
    if not isinstance(value, list | tuple):
        raise refusal(Code.WRONG_TYPE, "must be a list of ids, or of {id: …} and {find: …}")
    refusals = Refusals()
    entries: list[str | ServerEntry] = []
    first: dict[str | tuple[str], int] = {}
    for i, item in enumerate(value):
        entry: str | ServerEntry
        key: str | tuple[str]
        if (known := server_id(item)) is not None:
            entry = key = known
        elif isinstance(item, dict | ServerEntry):
            try:
                made = ServerEntry.model_validate(item)
            except ValidationError as error:
                refusals.include((i,), error)
                continue
            key = made.id if made.id is not None else (made.find or "",)
            entry = made.id if made.id is not None and made.image is None and made.rebuild is None else made
        else:
            refusals.add((i,), Code.INVALID_VALUE if isinstance(item, str) else Code.WRONG_TYPE, SERVER_ID_REMEDY)
            continue
        if (earlier := first.setdefault(key, i)) != i:
            refusals.add((i,), Code.DUPLICATE, f"names the server of [{earlier}] again: leave one of them out")
        entries.append(entry)
    refusals.raise_if_any()
    return tuple(entries)


def _entry_document(entry: str | ServerEntry) -> str | dict[str, Any]:
    if isinstance(entry, str):
        return entry
    return entry.model_dump(mode="json", exclude_none=True)


def _entries_document(entries: tuple[str | ServerEntry, ...]) -> list[str | dict[str, Any]]:
    return [_entry_document(entry) for entry in entries]


ServerEntries = Annotated[
    tuple[str | ServerEntry, ...],
    PlainValidator(_entries, json_schema_input_type=list[ServerId | ServerEntry]),
    PlainSerializer(_entries_document, return_type=list[Any]),
]


class Targets(Strict):
    """The plan's servers: those that are named, then those that are selected, without the excluded ones."""

    servers: ServerEntries = ()
    """Ids, or entries that find a server by name or change something for it; in this order."""
    select: Select | None = None
    exclude: Exclude | None = None
    max: Count | None = None
    """The plan is rejected if it turns out to have more servers."""

    @model_validator(mode="after")
    def _names_some(self, info: ValidationInfo) -> Self:
        if not self.servers and self.select is None and info.context is not STORED:
            raise refusal(Code.MISSING, "names no server: give servers, select or both")
        return self

    def rows(self) -> Iterator[tuple[str | None, str | None, dict[str, Any] | None]]:
        """(id, find, overrides) of each explicit server in order, as the ledger's jobs keep them."""
        for entry in self.servers:
            if isinstance(entry, str):
                yield entry, None, None
            else:
                yield entry.id, entry.find, entry.overrides()


def server_document(
    server_id: str | None, find: str | None, overrides: Mapping[str, Any] | None
) -> str | dict[str, Any]:
    """An item of `targets.servers` from a job's row: the reverse of `Targets.rows`.

    A job whose name was found keeps its `find`, and is written by name again.
    """
    if find is not None:
        return {"find": find, **(overrides or {})}
    if server_id is None:
        raise ValueError("a job has a server's id, a name to find, or both")
    return {"id": server_id, **overrides} if overrides else server_id
