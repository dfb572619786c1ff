"""The plan file as a whole."""

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from orchestrator.domain.spec.extras import Hooks, Notification, Probe, Schedule
from orchestrator.domain.spec.rebuild import OsSpec, RebuildSpec, UserData
from orchestrator.domain.spec.rollout import Failure, Labels, Rollout
from orchestrator.domain.spec.targets import STORED, Targets
from orchestrator.domain.spec.types import ImageRef, Listed, Period, Strict, Text, Title


class PlanSpec(Strict):
    """What is to be rebuilt, onto which image, in which order, and what is put up with on the way."""

    name: Title
    cloud: Text
    """A cloud of clouds.yaml."""
    image: ImageRef | None = None
    """Its id, URL or exact name. Required, except for reinstall_os, which keeps each server's own."""
    method: Literal["rebuild", "reinstall_os", "change_os"] = "rebuild"
    """Nova's rebuild, or one of Huawei's own two."""
    os: OsSpec | None = None
    """For reinstall_os and change_os."""
    targets: Targets
    rebuild: RebuildSpec = RebuildSpec()
    rollout: Rollout = Rollout()
    failure: Failure = Failure()
    hooks: Hooks | None = None
    verify: Listed[Probe] = ()
    """All must succeed on a rebuilt server."""
    skip_matching: bool = True
    """Whether servers that already are as the plan wants them are left alone."""
    on_conflict: Literal["reject", "queue", "skip"] = "reject"
    """What to do about servers that another plan holds."""
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    schedule: Schedule | None = None
    notify: Listed[Notification] = ()
    labels: Labels = Field(default_factory=dict)
    hold: bool = False
    """Prepare only: a saved preview, which `start` then runs."""
    hold_expires: Period = 86400.0
    """How long a held plan waits to be started."""

    def to_document(self) -> dict[str, Any]:
        """The plan file again, as JSON, with every default written out: `parse_spec` makes an equal plan of it.

        It holds the user data, so it must not be logged, stored or answered; see `without_servers`.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def without_servers(self) -> dict[str, Any]:
        """The document that the ledger stores and the API shows: no explicit servers, which live in `jobs`, and of
        user data only its size and digest. Defaults are written out, so that later ones don't change a stored plan.
        """
        document = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"targets": {"servers"}, "rebuild": {"user_data"}}
        )
        if self.rebuild.user_data is not None:
            document["rebuild"]["user_data"] = self.rebuild.user_data.shown()
        return document

    @property
    def user_data(self) -> bytes | None:
        """The plan's user data itself, for the ledger's own column; None where it gives none, or a `ref`."""
        given = self.rebuild.user_data
        return None if given is None or given.ref is not None else given.content

    @classmethod
    def read_stored(cls, document: Mapping[str, Any], user_data: bytes | None = None) -> Self:
        """The plan of a document that `without_servers` made, with the user data that was stored beside it.

        Its `targets.servers` are empty. Raises `ValueError` where the user data isn't that of the document's digest.
        """
        rebuild = dict(document.get("rebuild", {}))
        shown = rebuild.pop("user_data", None)
        if shown is not None and "ref" not in shown:
            if user_data is None or hashlib.sha256(user_data).hexdigest() != shown["sha256"]:
                raise ValueError("the stored plan's user data is missing or another")
            rebuild["user_data"] = UserData.of(user_data)
        elif shown is not None:
            rebuild["user_data"] = shown
        return cls.model_validate({**document, "rebuild": rebuild}, context=STORED)
