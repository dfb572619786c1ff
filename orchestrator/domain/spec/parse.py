"""From the plan file to `PlanSpec`, or to the full list of what is wrong with it."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.domain.spec.codes import Code
from orchestrator.domain.spec.faults import faults_of
from orchestrator.domain.spec.plan import PlanSpec
from orchestrator.domain.spec.rules import rules
from orchestrator.domain.spec.supported import not_supported_yet
from orchestrator.errors import Fault, SpecInvalid

MAX_FAULTS = 1000
"""Faults in one answer; the last of them says how many more there are."""


def parse_spec(raw: Mapping[str, Any]) -> PlanSpec:
    """The plan of a file, as JSON or YAML gave it.

    Raises `SpecInvalid` whose `errors` are all faults of the file at once, one for each path and code.
    """
    if not isinstance(raw, Mapping):
        raise _invalid([Fault(path="", code=Code.WRONG_TYPE.value, message="a plan is a mapping of fields to values")])
    faults = list(rules(raw))
    null = {fault.path for fault in faults if fault.code == Code.WRONG_TYPE.value}
    wrong: list[Fault] = []
    spec = None
    try:
        spec = PlanSpec.model_validate(dict(raw))
    except ValidationError as error:
        wrong = [fault for fault in faults_of(error, PlanSpec) if fault.path not in null]
    nonsense = {fault.path for fault in wrong}
    later = [fault for fault in not_supported_yet(raw) if fault.path not in nonsense]
    faults += wrong + later
    if spec is None or faults:
        first: dict[tuple[str, str], Fault] = {}
        for fault in faults:
            first.setdefault((fault.path, fault.code), fault)
        raise _invalid(list(first.values()))
    return spec


def _invalid(faults: list[Fault]) -> SpecInvalid:
    if len(faults) > MAX_FAULTS:
        more = len(faults) - MAX_FAULTS + 1
        faults = faults[: MAX_FAULTS - 1]
        faults.append(Fault(path="", code=Code.MORE_FAULTS.value, message=f"there are {more} more faults"))
    first = faults[0]
    where = f"{first.path}: " if first.path else ""
    message = (
        f"{where}{first.message}" if len(faults) == 1 else f"The plan has {len(faults)} faults; each has its path."
    )
    return SpecInvalid(message, errors=faults)
