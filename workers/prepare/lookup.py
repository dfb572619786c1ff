"""What a plan speaks of, looked up in the cloud: its images and its servers, read in bulk."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.clouds.openstack import OpenStackCloud
from orchestrator.clouds.protocol import Image, Server
from orchestrator.domain.spec import PlanSpec, Select
from orchestrator.domain.targets import excluded, matches
from orchestrator.errors import Fault
from orchestrator.ledger.prepare import Target
from workers.driver.mirror import FEW, Mirror

ASKED_BY_ID = 500
"""So many servers that the list left out are asked for by id; a plan with more of them is most likely for another
project, and is told so."""


class Rejected(Exception):
    """Preparing found faults; the plan is rejected with them, itemised."""

    def __init__(self, faults: Sequence[Fault]):
        super().__init__(faults[0].message)
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Found:
    """A target with the server behind it (None: the cloud has none)."""

    target: Target
    server_id: str
    server: Server | None


async def images_of(
    cloud: OpenStackCloud, spec: PlanSpec, targets: Sequence[Target], *, leave_out: bool = False
) -> Mapping[str, Image]:
    """Every image that the plan speaks of, by its reference. Raises `Rejected` for none, several or inactive ones;
    with `leave_out` those are missing from the answer instead."""
    references = {spec.image or "": "image"}
    for i, t in enumerate(targets):
        if t.overrides and t.overrides.get("image"):
            references.setdefault(t.overrides["image"], f"targets.servers[{i}].image")
    found: dict[str, Image] = {}
    faults: list[Fault] = []
    for reference, path in references.items():
        candidates = await cloud.find_images(reference)
        if len(candidates) != 1:
            faults.append(_image_fault(path, reference, candidates))
        elif candidates[0].status != "active":
            message = f"image {candidates[0].id} is {candidates[0].status}; only active images can be used"
            faults.append(Fault(path=path, code="image_not_active", message=message))
        else:
            found[reference] = candidates[0]
    if faults and not leave_out:
        raise Rejected(faults)
    return found


def _image_fault(path: str, reference: str, candidates: Sequence[Image]) -> Fault:
    if not candidates:
        return Fault(path=path, code="unknown_image", message=f"the cloud has no image {reference!r}")
    ids = ", ".join(c.id for c in candidates[:20])
    return Fault(path=path, code="ambiguous_image",
                 message=f"{len(candidates)} images are named {reference!r}; give an id: {ids}")  # fmt: skip


async def listed_of(cloud: OpenStackCloud, spec: PlanSpec, targets: Sequence[Target]) -> dict[str, Server]:
    """Every server of the project; none where a few are named by id and nobody has to know of the others."""
    by_id_only = spec.targets.select is None and all(t.server_id and not t.find for t in targets)
    if by_id_only and len(targets) <= FEW and spec.rollout.max_unavailable is None:
        return {}
    return {s.id: s async for page in cloud.list_servers() for s in page.servers}


async def servers_of(
    cloud: OpenStackCloud, spec: PlanSpec, targets: Sequence[Target], listed: Mapping[str, Server]
) -> list[Found]:
    """The plan's servers in their stable order: explicit ones as written, then selected ones by name."""
    found = await _explicit(cloud, targets, listed)
    exclude = spec.targets.exclude
    if select := spec.targets.select:
        select = await _by_image(cloud, select)
        named = {f.server_id for f in found}
        chosen = [s for s in listed.values() if s.id not in named and matches(select, s)]
        start = max((t.ord for t in targets), default=-1) + 1
        for i, server in enumerate(sorted(chosen, key=lambda s: (s.name, s.id))):
            target = Target(ord=start + i, server_id=server.id, find=None, overrides=None)
            found.append(Found(target=target, server_id=server.id, server=server))
    excluded_ids = exclude.servers if exclude else frozenset()
    return [f for f in found if f.server_id not in excluded_ids and not (f.server and excluded(exclude, f.server))]


async def _by_image(cloud: OpenStackCloud, select: Select) -> Select:
    """The selection with its image as an id, as servers show theirs. Raises `Rejected`."""
    if select.image is None:
        return select
    candidates = await cloud.find_images(select.image)
    if len(candidates) != 1:
        raise Rejected([_image_fault("targets.select.image", select.image, candidates)])
    return select.model_copy(update={"image": candidates[0].id})


async def _explicit(cloud: OpenStackCloud, targets: Sequence[Target], listed: Mapping[str, Server]) -> list[Found]:
    names: dict[str, list[Server]] = defaultdict(list)
    if any(t.find for t in targets):
        for server in listed.values():
            names[server.name].append(server)
    found: list[Found] = []
    faults: list[Fault] = []
    for i, target in enumerate(targets):
        if target.find is None:
            server_id = target.server_id or ""
            found.append(Found(target=target, server_id=server_id, server=listed.get(server_id)))
            continue
        candidates = names[target.find]
        if len(candidates) != 1:
            faults.append(_find_fault(i, target.find, candidates))
        else:
            found.append(Found(target=target, server_id=candidates[0].id, server=candidates[0]))
    faults += _duplicates(found)
    if faults:
        raise Rejected(faults[:1000])
    return await _asked_by_id(cloud, found)


def _find_fault(i: int, name: str, candidates: Sequence[Server]) -> Fault:
    path = f"targets.servers[{i}].find"
    if not candidates:
        return Fault(path=path, code="unknown_server", message=f"no server of the project is named {name!r}")
    ids = ", ".join(c.id for c in candidates[:20])
    return Fault(path=path, code="ambiguous_server",
                 message=f"{len(candidates)} servers are named {name!r}; give an id: {ids}")  # fmt: skip


def _duplicates(found: Iterable[Found]) -> list[Fault]:
    seen: dict[str, int] = {}
    faults = []
    for i, f in enumerate(found):
        if f.server_id in seen:
            message = f"is server {f.server_id} again, as targets.servers[{seen[f.server_id]}]"
            faults.append(Fault(path=f"targets.servers[{i}]", code="duplicate", message=message))
        seen.setdefault(f.server_id, i)
    return faults


async def _asked_by_id(cloud: OpenStackCloud, found: Sequence[Found]) -> list[Found]:
    """A server missing from a list is not gone (a cell may be down): each is asked for by its id, patiently."""
    missing = [f.server_id for f in found if f.server is None][:ASKED_BY_ID]
    answers = await Mirror(cloud, whole=True).read_patiently(missing)
    return [replace(f, server=answers.get(f.server_id)) if f.server is None else f for f in found]


def check_count(spec: PlanSpec, found: Sequence[Found]) -> None:
    if not found:
        raise Rejected([Fault(path="targets", code="no_servers", message="no server matches; nothing would be done")])
    most = spec.targets.max
    if most is not None and len(found) > most:
        message = f"{len(found)} servers were found, more than the {most} that the plan allows"
        raise Rejected([Fault(path="targets.max", code="too_many_servers", message=message)])
