"""The servers that a rehearsal cloud begins with."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Any

from orchestrator.rehearsal.config import RehearsalConfig, stable_hex, stable_id
from orchestrator.rehearsal.state import POWER, Action, Server, VmState


def fleet(config: RehearsalConfig, *, began: float) -> list[Server]:
    """The fleet of a configuration, always the same; `began`: when its first server was made, Unix time."""
    states = _special(config)
    addresses: Iterator[Any] = iter(())
    if config.network is not None:
        addresses = iter(ipaddress.ip_network(config.network).hosts())
    owner = config.fleet_user
    made: list[Server] = []
    for index in range(1, config.servers + 1):
        zone_number = (index - 1) % len(config.zones)
        zone = config.zones[zone_number]
        host = (index - 1) // len(config.zones) % config.hosts_per_zone
        what = states.get(index, "active")
        name = config.name_pattern.format(index=index)
        created = float(began + index // 10)
        vm_state = VmState(what) if what in ("stopped", "paused", "error") else VmState.ACTIVE
        server = Server(
            number=index,
            id=stable_id("server", config.seed, index),
            name=name,
            hostname=re.sub(r"[^a-z0-9-]", "-", name.lower()),
            project_id=owner.project_id,
            user_id=owner.id,
            created=created,
            updated=created + 30,
            launched_at=created + 30,
            image=config.images[0].id,
            zone=zone,
            host_id=(stable_hex("host", zone, host) * 2)[:56],
            metadata={**config.metadata, "index": str(index)},
            tags=sorted(config.tags),
            address=str(next(addresses)) if config.network is not None else None,
            volume=stable_id("volume", config.seed, index) if what == "volume" else None,
            vm_state=vm_state,
            power=POWER[vm_state],
            locked=what == "locked",
        )
        request_id = "req-" + stable_id("create", config.seed, index)
        create = Action(
            request_id=request_id,
            action="create",
            user_id=owner.id,
            project_id=owner.project_id,
            start=created,
            updated=created + 30,
        )
        create.end(create.begin("compute__do_build_and_run_instance", created, server.host_id), created + 30)
        server.actions[request_id] = create
        if vm_state is VmState.ERROR:
            server.fail(created + 30, "rehearsal: the host was lost")
        made.append(server)
    return made


def _special(config: RehearsalConfig) -> dict[int, str]:
    """Which servers are special, from the end of the fleet."""
    kinds = (
        ["volume"] * config.volume_booted
        + ["paused"] * config.paused
        + ["stopped"] * config.shutoff
        + ["error"] * config.error
        + ["locked"] * config.locked
    )
    return dict(zip(range(config.servers, 0, -1), kinds, strict=False))
