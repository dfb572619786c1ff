"""The pages. They are complete without scripts; a small module then keeps them current."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from aiohttp import web
from jinja2 import Environment, PackageLoader

from orchestrator.errors import NotAllowed, NotFound, Unauthenticated
from orchestrator.service import reads
from orchestrator.service.deps import Deps
from orchestrator.service.roles import Principal
from orchestrator.service.sessions import COOKIE, SESSION_SECONDS, open_session, principal_of_session
from orchestrator.service.tokens import TokenChecker

PLANS_SHOWN = 50
EVENTS_SHOWN = 30
STATIC = Path(__file__).parent / "static"


def add_pages(app: web.Application, *, deps: web.AppKey[Deps], tokens: web.AppKey[TokenChecker]) -> None:
    """Adds the pages' routes; the keys say where the application keeps what they need."""
    pages = _Pages(deps, tokens)
    app.router.add_get("/", pages.plans)
    app.router.add_get("/plans/{id}", pages.plan)
    app.router.add_get("/login", pages.login_form)
    app.router.add_post("/login", pages.login)
    app.router.add_post("/logout", pages.logout)
    app.router.add_static("/static", STATIC)


class _Pages:
    def __init__(self, deps: web.AppKey[Deps], tokens: web.AppKey[TokenChecker]):
        self._deps = deps
        self._tokens = tokens
        self._templates = Environment(
            loader=PackageLoader("orchestrator.dashboard"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )

    async def plans(self, request: web.Request) -> web.Response:
        """The newest plans."""
        principal = await self._signed_in(request)
        page = await reads.list_plans(request.app[self._deps], principal, limit=PLANS_SHOWN)
        return self._page("plans.html", principal=principal, plans=page.items)

    async def plan(self, request: web.Request) -> web.Response:
        """One plan with counts, waves and its latest events."""
        principal = await self._signed_in(request)
        deps, plan_id = request.app[self._deps], _plan_id(request)
        plan = await reads.get_plan(deps, principal, plan_id)
        events, newest = await reads.latest_events(deps, principal, plan_id, EVENTS_SHOWN)
        return self._page("plan.html", principal=principal, plan=plan, events=events, newest=newest)

    async def login_form(self, _: web.Request) -> web.Response:
        """Asks for a token."""
        return self._page("login.html", wrong=False)

    async def login(self, request: web.Request) -> web.Response:
        """Opens a session for who knows a token."""
        _same_site(request)
        form = await request.post()
        given = form.get("token")
        try:
            cookie = await open_session(request.app[self._tokens], given.strip() if isinstance(given, str) else "")
        except Unauthenticated:
            return self._page("login.html", status=401, wrong=True)
        response = _see_other("/")
        response.set_cookie(
            COOKIE, cookie, max_age=SESSION_SECONDS, httponly=True, samesite="Strict", path="/",
            secure=request.app[self._deps].api_url.startswith("https://"),
        )  # fmt: skip
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """Ends the session in this browser."""
        _same_site(request)
        response = _see_other("/login")
        response.del_cookie(COOKIE, path="/")
        return response

    async def _signed_in(self, request: web.Request) -> Principal:
        try:
            return await principal_of_session(request.app[self._tokens], request.cookies.get(COOKIE, ""))
        except Unauthenticated:
            raise web.HTTPSeeOther("/login") from None

    def _page(self, template: str, *, status: int = 200, **values: Any) -> web.Response:
        shown: Mapping[str, Any] = {"principal": None} | values
        return web.Response(
            status=status, text=self._templates.get_template(template).render(shown), content_type="text/html"
        )


def _same_site(request: web.Request) -> None:
    """Refuses forms that another site sends: nobody is signed in or out by a page of strangers."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        raise NotAllowed("This form was sent by another site.")


def _see_other(location: str) -> web.Response:
    return web.Response(status=303, headers={"Location": location})


def _plan_id(request: web.Request) -> UUID:
    try:
        return UUID(request.match_info["id"])
    except ValueError:
        raise NotFound("There is no plan of that id.") from None
