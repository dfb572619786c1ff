"""The plan that takes servers back to the images that they had before another plan."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from orchestrator.domain.spec import PlanSpec
from orchestrator.domain.spec.targets import STORED

TAKEN_OVER = ("cloud", "rollout", "failure", "hooks", "verify", "labels")
MAX_NAME = 254
DATA_IS_GONE = "Only the images come back: what was on the disks is gone, and is wiped once more."


def rollback_spec(
    source: Mapping[str, Any], name: str, servers: Collection[str], images: Sequence[str], *, hold: bool
) -> PlanSpec:
    """From the stored plan file of the plan that is undone. `images` are those that come back, one a server; the
    commonest stands as the plan's, though each server has its own.

    Pace, failure policy, hooks and probes are the source's, and so is its consent to re-image boot volumes. Names and
    metadata stay as the servers have them now. Waves keep their sizes, and those of their servers that come along.
    """
    known = set(servers)
    document = {key: source[key] for key in TAKEN_OVER if key in source}
    rollout = dict(document.get("rollout", {}))
    waves = [
        {**wave, "servers": [s for s in wave.get("servers", ()) if s in known]} for wave in rollout.get("waves", ())
    ]
    waves = [w for w in waves if w.get("size") is not None or w["servers"]]
    rollout = {k: v for k, v in rollout.items() if k != "waves"} | ({"waves": waves} if waves else {})
    consent = source.get("rebuild", {}).get("reimage_boot_volume", False)
    document |= {
        "name": f"rollback of {name}"[:MAX_NAME],
        "image": Counter(images).most_common(1)[0][0] if images else source.get("image"),
        "targets": {},
        "rollout": rollout,
        "rebuild": {"reimage_boot_volume": consent},
        "skip_matching": True,
        "hold": hold,
    }
    return PlanSpec.model_validate(document, context=STORED)
