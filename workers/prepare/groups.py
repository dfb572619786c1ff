"""The groups of a plan's disruption budget, counted over all servers of its project."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.clouds.protocol import Server
from orchestrator.domain.budget import group_of, places
from orchestrator.domain.spec import MaxUnavailable
from orchestrator.ledger.budgets import PreparedGroup
from orchestrator.ledger.prepare import Prepared
from workers.prepare.lookup import Found


def group(per: str, server: Server) -> str:
    """The group of a server as the cloud shows it."""
    return group_of(per, zone=server.zone, host=server.host or server.host_id, metadata=server.metadata)


def with_groups(
    prepared: Prepared, budget: MaxUnavailable, found: Sequence[Found], listed: Mapping[str, Server]
) -> Prepared:
    """The plan with each job's group, and with the groups that it has jobs in, sized as they are in the cloud."""
    servers = {f.server_id: f.server for f in found if f.server} | dict(listed)
    groups = {i: group(budget.per, s) for i, s in servers.items()}
    sizes = Counter(groups.values())
    jobs = [replace(j, budget_group=groups.get(j.server_id, "")) for j in prepared.jobs]
    names = sorted({j.budget_group or "" for j in jobs})  # refused ones too: a person may have them retried
    sized = [PreparedGroup(name=n, size=sizes[n], places=places(budget.limit, sizes[n])) for n in names]
    return replace(prepared, jobs=jobs, groups=sized)
