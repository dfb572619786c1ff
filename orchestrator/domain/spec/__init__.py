"""The plan file: its fields, their notations and defaults, and what is refused. `parse_spec` is the way in."""

from orchestrator.domain.spec.codes import Code as Code
from orchestrator.domain.spec.extras import Window as Window
from orchestrator.domain.spec.parse import parse_spec as parse_spec
from orchestrator.domain.spec.plan import PlanSpec as PlanSpec
from orchestrator.domain.spec.rebuild import Overrides as Overrides
from orchestrator.domain.spec.rebuild import RebuildSpec as RebuildSpec
from orchestrator.domain.spec.rebuild import ServerRebuild as ServerRebuild
from orchestrator.domain.spec.rebuild import UserData as UserData
from orchestrator.domain.spec.rollout import Failure as Failure
from orchestrator.domain.spec.rollout import MaxUnavailable as MaxUnavailable
from orchestrator.domain.spec.rollout import Rollout as Rollout
from orchestrator.domain.spec.rollout import Wave as Wave
from orchestrator.domain.spec.targets import Exclude as Exclude
from orchestrator.domain.spec.targets import Select as Select
from orchestrator.domain.spec.targets import ServerEntry as ServerEntry
from orchestrator.domain.spec.targets import Targets as Targets
from orchestrator.domain.spec.targets import server_document as server_document
