"""Who may do what."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from orchestrator.errors import NotAllowed


class Role(StrEnum):
    """What a token is for."""

    VIEWER = "viewer"
    """Reads."""
    SUBMITTER = "submitter"
    """Submits and previews; starts and cancels its own plans."""
    OPERATOR = "operator"
    """Every plan action but approving and rejecting; the emergency stop."""
    APPROVER = "approver"
    """Reads, approves and rejects; never its own plan."""
    ADMIN = "admin"
    """Everything, and tokens."""


class Right(StrEnum):
    """What a role can allow; the value reads after “may not”."""

    READ = "read"
    """Look at plans, jobs, events and clouds."""
    SUBMIT = "submit plans"
    """Submit a plan, held or not."""
    RUN_OWN = "start or cancel plans of its own"
    """Start and cancel what this token submitted."""
    OPERATE = "act on plans"
    """Every plan action but approving and rejecting."""
    APPROVE = "approve or reject plans"
    """Decide at a gate."""
    STOP_CLOUDS = "pause or resume clouds"
    """The emergency stop."""
    ADMINISTER = "administer tokens"
    """Create, list and revoke tokens."""


RIGHTS: dict[Role, frozenset[Right]] = {
    Role.VIEWER: frozenset({Right.READ}),
    Role.SUBMITTER: frozenset({Right.READ, Right.SUBMIT, Right.RUN_OWN}),
    Role.OPERATOR: frozenset({Right.READ, Right.SUBMIT, Right.RUN_OWN, Right.OPERATE, Right.STOP_CLOUDS}),
    Role.APPROVER: frozenset({Right.READ, Right.APPROVE}),
    Role.ADMIN: frozenset(Right),
}


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Whoever makes a request: a token, by its name, with its role and limits."""

    token_id: UUID
    name: str
    role: Role
    clouds: frozenset[str] = frozenset()
    """Clouds that it may use and see; empty: all."""
    max_targets: int | None = None

    def may(self, right: Right) -> bool:
        """Whether its role has the right."""
        return right in RIGHTS[self.role]

    def need(self, right: Right) -> None:
        """Raises `NotAllowed` where its role has not the right, naming the roles that do."""
        if not self.may(right):
            able = ", ".join(role for role in Role if right in RIGHTS[role])
            raise NotAllowed(f"The role {self.role} may not {right}; it takes one of: {able}.")

    def need_to_run(self, created_by: str) -> None:
        """Starting and cancelling: an operator's right on every plan, a submitter's on its own."""
        if not self.may(Right.OPERATE):
            self.need(Right.RUN_OWN)
            if created_by != self.name:
                raise NotAllowed(f"This plan was submitted by {created_by}; only operators start or cancel others'.")

    def need_cloud(self, cloud: str) -> None:
        """Raises `NotAllowed` where the token is limited to other clouds."""
        if self.clouds and cloud not in self.clouds:
            raise NotAllowed(f"This token is limited to: {', '.join(sorted(self.clouds))}; not {cloud}.")

    def need_targets(self, count: int) -> None:
        """Raises `NotAllowed` where the token is limited to fewer servers in one plan."""
        if self.max_targets is not None and count > self.max_targets:
            raise NotAllowed(f"This token is limited to {self.max_targets} servers a plan; this one names {count}.")
