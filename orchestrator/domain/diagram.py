"""The life cycles as Mermaid diagrams, from the tables: `python -m orchestrator.domain.diagram` prints the page
docs/explanation/life-cycles.md."""

import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, TypeVar

from orchestrator.domain.lifecycle import JOB_TRANSITIONS, PLAN_TRANSITIONS
from orchestrator.domain.states import FINAL_JOB_STATES, FINAL_PLAN_STATUSES, JobState, PlanStatus

Kind = Literal["job", "plan"]
S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)

PAGE = """\
# Life cycles

This page is generated from the tables in `orchestrator/domain/lifecycle.py`; don't edit it:

    python -m orchestrator.domain.diagram > docs/explanation/life-cycles.md

An arrow's label says what happened. Nothing moves that has no arrow here: the driver drops it, and the API answers 409.

## A job

One server of one plan. An arrow to the end marks a state that a job leaves only by a person's retry; its hold on the
server goes with the step into that state, and never before. `stuck` and `unresolved` keep their hold, though no wave
and no cancellation waits for them.

```mermaid
{job}
```

{job_states}

## A plan

An arrow to the end marks a status that a plan leaves only by a retry, or by late evidence for a stuck or unresolved
job.

```mermaid
{plan}
```

{plan_states}
"""


def mermaid(kind: Kind) -> str:
    """The state diagram of a job's or a plan's life, without a line break at its end."""
    if kind == "job":
        return _diagram(JOB_TRANSITIONS, JobState.PENDING, FINAL_JOB_STATES)
    return _diagram(PLAN_TRANSITIONS, PlanStatus.PREPARING, FINAL_PLAN_STATUSES)


def page() -> str:
    """The whole page, with a line break at its end."""
    return PAGE.format(job=mermaid("job"), plan=mermaid("plan"), job_states=_table(JOB_TRANSITIONS, JobState),
                       plan_states=_table(PLAN_TRANSITIONS, PlanStatus))  # fmt: skip


def _diagram(table: Mapping[tuple[S, E], tuple[S, ...]], first: S, final: frozenset[S]) -> str:
    arrows: dict[tuple[S, S], list[str]] = {}
    for (state, event), targets in table.items():
        for target in targets:
            arrows.setdefault((state, target), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {first}"]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in type(first) if state in final]
    return "\n".join(lines)


def _table(table: Mapping[tuple[S, E], tuple[S, ...]], states: type[S]) -> str:
    lines = ["| in | on | goes to |", "| --- | --- | --- |"]
    for state in states:
        lines += [
            f"| {state} | {event} | {' or '.join(targets)} |" for (s, event), targets in table.items() if s is state
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(page())
