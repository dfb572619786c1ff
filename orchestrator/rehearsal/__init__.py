"""A Keystone-, Nova- and Glance-compatible cloud in memory, for demos, rehearsals and tests.

It speaks HTTP, so whatever talks to OpenStack can be pointed at it, and it keeps an exact account of what each server
went through. `tests/clouds/contract` holds it against a real Nova.
"""

from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.config import RehearsalConfig, RehearsalImage, RehearsalUser
from orchestrator.rehearsal.faults import Fault, FaultKind
from orchestrator.rehearsal.serve import Running, serve, serve_in_thread

__all__ = [
    "Fault",
    "FaultKind",
    "RehearsalCloud",
    "RehearsalConfig",
    "RehearsalImage",
    "RehearsalUser",
    "Running",
    "serve",
    "serve_in_thread",
]
