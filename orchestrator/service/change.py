"""Changing a plan's pace while it isn't final."""

from uuid import UUID

from orchestrator.domain.states import FINAL_PLAN_STATUSES, PlanStatus
from orchestrator.domain.units import format_rate, parse_rate
from orchestrator.errors import Conflict, Fault, NotFound
from orchestrator.ledger.engine import transaction
from orchestrator.ledger.plans import PlanRecord, change_pace, plan_record
from orchestrator.ledger.transitions import lock_plans
from orchestrator.service.deps import Deps
from orchestrator.service.errors import RequestInvalid
from orchestrator.service.roles import Principal, Right
from orchestrator.service.show import plan_views
from orchestrator.service.views import PlanView


async def change(
    deps: Deps, principal: Principal, plan_id: UUID, *, max_in_flight: int | None = None, rate: str | None = None,
    reason: str | None = None,
) -> PlanView:  # fmt: skip
    """Sets how many servers may be out at once, and the calls per second (`10/s`), within what the cloud allows.

    A lower `max_in_flight` takes back what was claimed and not sent; what is in flight goes on. Raises `Conflict`
    (`wrong_state`) for a plan that has ended or is not prepared, `RequestInvalid` for a value above the cloud's own.
    """
    principal.need(Right.OPERATE)
    if max_in_flight is None and rate is None:
        raise _refused("", "missing", "give max_in_flight, rate or both")
    per_second = _rate(rate)
    async with transaction(deps.engine) as conn:
        await lock_plans(conn, [plan_id])
        plan = await plan_record(conn, plan_id)
        if plan is None:
            raise NotFound("There is no plan of that id.")
        principal.need_cloud(plan.cloud)
        _changeable(plan)
        own = await deps.clouds.settings(plan.cloud)
        if own is None:
            raise Conflict(
                f"{plan.cloud} is not in this service's clouds.yaml (any more).", code="cloud_not_configured"
            )
        if max_in_flight is not None and max_in_flight > own.max_in_flight:
            raise _refused("max_in_flight", "above_cloud", f"the cloud's own limit is {own.max_in_flight}")
        if per_second is not None and per_second > own.write_rate:
            raise _refused("rate", "above_cloud", f"the cloud's own rate is {format_rate(own.write_rate)}")
        places = plan.max_in_flight if max_in_flight is None else max_in_flight
        pace = plan.rate if per_second is None else per_second
        pace = None if pace is not None and pace >= own.write_rate else pace
        if (places, pace) != (plan.max_in_flight, plan.rate):
            old, new = _shown(plan.max_in_flight, plan.rate, own.write_rate), _shown(places, pace, own.write_rate)
            lowered = places is not None and plan.max_in_flight is not None and places < plan.max_in_flight
            await change_pace(conn, plan_id, max_in_flight=places, rate=pace, lowered=lowered, old=old, new=new,
                              actor=principal.name, why=reason)  # fmt: skip
    await deps.hints.drive()
    async with deps.engine.connect() as conn:
        record = await plan_record(conn, plan_id)
        if record is None:
            raise NotFound("There is no plan of that id.")
        return (await plan_views(deps, conn, [record]))[0]


def _changeable(plan: PlanRecord) -> None:
    status = PlanStatus(plan.status)
    if status is PlanStatus.PREPARING:
        raise Conflict("The plan is being prepared; its pace can be changed once it is.", code="wrong_state")
    if status in FINAL_PLAN_STATUSES:
        raise Conflict(f"The plan is {plan.status}: nothing of it is still to be sent.", code="wrong_state")


def _rate(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        return parse_rate(given)
    except ValueError as e:
        raise _refused("rate", "invalid_value", str(e)) from None


def _shown(max_in_flight: int | None, rate: float | None, write_rate: float) -> dict[str, int | str | None]:
    return {"max_in_flight": max_in_flight, "rate": format_rate(write_rate if rate is None else rate)}


def _refused(path: str, code: str, message: str) -> RequestInvalid:
    said = f"{path}: {message}" if path else message
    return RequestInvalid(said, errors=[Fault(path=path, code=code, message=message)])
