"""Keystone: sign-in by password, application credential or token, and the service catalogue."""

import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from orchestrator.rehearsal.cloud import RehearsalCloud
from orchestrator.rehearsal.config import RehearsalUser, stable_hex
from orchestrator.rehearsal.state import zulu

AUTH_REQUIRED = "The request you have made requires authentication."
_MALFORMED = (
    "The server could not comply with the request since it is either malformed or otherwise incorrect. "
    "The client is assumed to be in error."
)
_TITLES = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
_DOMAIN = {"id": "default", "name": "Default"}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A right to act as a user until `expires` (seconds since the epoch); unscoped where `scoped` is False."""

    user: RehearsalUser
    scoped: bool
    methods: tuple[str, ...]
    issued: float
    expires: float


class _Denied(Exception):
    """An answer in Keystone's form of error."""

    def __init__(self, status: int, message: str = AUTH_REQUIRED):
        self.status = status
        self.message = message
        super().__init__(message)


class Keystone:
    """The tokens that were given out, and the handlers under `/identity`."""

    def __init__(self, cloud: RehearsalCloud, url: str):
        self.cloud = cloud
        self.url = f"{url}/identity"
        self.compute_root = url
        """Where the catalogue says that Nova is; another one from now on: it has moved."""
        self._root = url
        self._tokens: dict[str, Token] = {}

    def whose(self, token: str | None, now: float) -> Token | None:
        """The token as long as it is good, from the moment of issue to that of expiry, without grace."""
        found = self._tokens.get(token or "")
        return found if found is not None and now < found.expires else None

    def revoke(self, user: str | None = None) -> int:
        """Takes back all tokens, or one user's; says how many. They are refused from the next call on."""
        gone = [key for key, token in self._tokens.items() if user in (None, token.user.name)]
        for key in gone:
            del self._tokens[key]
        return len(gone)

    @property
    def challenge(self) -> dict[str, str]:
        """The header of a 401."""
        return {"WWW-Authenticate": f'Keystone uri="{self.url}/v3"'}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/identity", self._versions),
            web.get("/identity/", self._versions),
            web.get("/identity/v3", self._version),
            web.get("/identity/v3/", self._version),
            web.post("/identity/v3/auth/tokens", self._issue),
            web.get("/identity/v3/auth/tokens", self._show),
            web.delete("/identity/v3/auth/tokens", self._delete),
            web.get("/identity/v3/auth/projects", self._projects),
            web.get("/identity/v3/auth/catalog", self._catalog_alone),
        ]

    # Handlers.

    async def _versions(self, _: web.Request) -> web.Response:
        body = {"versions": {"values": [self._described()]}}
        return web.json_response(body, status=300, headers={"Location": f"{self.url}/v3/"})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self._described()})

    async def _issue(self, request: web.Request) -> web.Response:
        now = self.cloud.now()
        self.cloud.account.sign_ins += 1
        try:
            token = self._sign_in(await _body(request), now)
        except _Denied as e:
            return self._denied(e)
        key = secrets.token_urlsafe(48)
        self._tokens[key] = token
        headers = {"X-Subject-Token": key, "Vary": "X-Auth-Token"}
        return web.json_response({"token": self._document(token)}, status=201, headers=headers)

    async def _show(self, request: web.Request) -> web.Response:
        now = self.cloud.now()
        if self.whose(request.headers.get("X-Auth-Token"), now) is None:
            return self._denied(_Denied(401))
        subject = request.headers.get("X-Subject-Token")
        token = self.whose(subject, now)
        if token is None or subject is None:
            return self._denied(_Denied(404, "Could not recognize Fernet token"))
        return web.json_response({"token": self._document(token)}, headers={"X-Subject-Token": subject})

    async def _delete(self, request: web.Request) -> web.Response:
        if self.whose(request.headers.get("X-Auth-Token"), self.cloud.now()) is None:
            return self._denied(_Denied(401))
        self._tokens.pop(request.headers.get("X-Subject-Token", ""), None)
        return web.Response(status=204)

    async def _projects(self, request: web.Request) -> web.Response:
        token = self.whose(request.headers.get("X-Auth-Token"), self.cloud.now())
        if token is None:
            return self._denied(_Denied(401))
        project = {"id": token.user.project_id, "name": token.user.project, "domain_id": "default", "enabled": True}
        return web.json_response({"projects": [project], "links": {"next": None, "previous": None}})

    async def _catalog_alone(self, request: web.Request) -> web.Response:
        token = self.whose(request.headers.get("X-Auth-Token"), self.cloud.now())
        if token is None or not token.scoped:
            return self._denied(_Denied(401))
        return web.json_response({"catalog": self._catalog(token.user.project_id), "links": {}})

    # What they rest on.

    def _sign_in(self, body: Any, now: float) -> Token:
        auth = body.get("auth") if isinstance(body, dict) else None
        if not isinstance(auth, dict):
            raise _Denied(400, f"Expecting to find auth in request body. {_MALFORMED}")
        try:
            identity = auth["identity"]
            methods = tuple(identity["methods"])
            expires = now + self.cloud.config.token_ttl
            if methods == ("password",):
                given = identity["password"]["user"]
                user = self._user(given)
                if user is None or not hmac.compare_digest(str(given["password"]).encode(), user.password.encode()):
                    raise _Denied(401)
            elif methods == ("application_credential",):
                user = self._by_credential(identity["application_credential"])
                return Token(user=user, scoped=True, methods=methods, issued=now, expires=expires)
            elif methods == ("token",):
                old = self.whose(identity["token"]["id"], now)
                if old is None:
                    raise _Denied(404, "Could not recognize Fernet token")
                user, expires = old.user, old.expires
            else:
                raise _Denied(401)
            scope = auth.get("scope")
            scoped = self._scoped(user, scope) if scope not in (None, "unscoped") else False
        except (KeyError, TypeError):
            raise _Denied(400, f"Invalid input for field 'identity'. {_MALFORMED}") from None
        return Token(user=user, scoped=scoped, methods=methods, issued=now, expires=expires)

    def _user(self, given: dict[str, Any]) -> RehearsalUser | None:
        for user in self.cloud.config.users:
            if given.get("id") == user.id or (given.get("name") == user.name and _in_default(given)):
                return user
        return None

    def _by_credential(self, given: dict[str, Any]) -> RehearsalUser:
        wanted = given.get("id")
        for user in self.cloud.config.users:
            named = given.get("name") == f"{user.name}-credential" and self._user(given.get("user", {})) is user
            if wanted == user.credential_id or named:
                if not hmac.compare_digest(str(given["secret"]).encode(), user.password.encode()):
                    raise _Denied(401)
                return user
        raise _Denied(404, f"Could not find Application Credential: {wanted}.")

    def _scoped(self, user: RehearsalUser, scope: Any) -> bool:
        project = scope["project"]
        if project.get("id") == user.project_id:
            return True
        if project.get("name") == user.project and _in_default(project):
            return True
        raise _Denied(401)

    def _denied(self, e: _Denied) -> web.Response:
        error = {"code": e.status, "message": e.message, "title": _TITLES[e.status]}
        headers = {"Vary": "X-Auth-Token", **(self.challenge if e.status == 401 else {})}
        return web.json_response({"error": error}, status=e.status, headers=headers)

    def _described(self) -> dict[str, Any]:
        media = {"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}
        return {
            "id": "v3.14",
            "status": "stable",
            "updated": "2020-04-07T00:00:00Z",
            "links": [{"rel": "self", "href": f"{self.url}/v3/"}],
            "media-types": [media],
        }

    def _document(self, token: Token) -> dict[str, Any]:
        user = token.user
        shown: dict[str, Any] = {
            "methods": list(token.methods),
            "user": {"domain": _DOMAIN, "id": user.id, "name": user.name, "password_expires_at": None},
            "audit_ids": [secrets.token_urlsafe(16)],
            "expires_at": zulu(token.expires)[:-1] + ".000000Z",
            "issued_at": zulu(token.issued)[:-1] + ".000000Z",
        }
        if token.scoped:
            roles = ("admin", "member", "reader")
            held = roles[roles.index(user.role) :]
            shown |= {
                "project": {"domain": _DOMAIN, "id": user.project_id, "name": user.project},
                "is_domain": False,
                "roles": [{"id": stable_hex("role", role), "name": role} for role in held],
                "catalog": self._catalog(user.project_id),
            }
        return shown

    def _catalog(self, project_id: str) -> list[dict[str, Any]]:
        services = (
            ("compute", "nova", f"{self.compute_root}/compute/v2.1/{project_id}"),
            ("image", "glance", f"{self._root}/image"),
            ("identity", "keystone", f"{self.url}/v3"),
        )
        region = self.cloud.config.region
        return [
            {
                "id": stable_hex("service", kind),
                "type": kind,
                "name": name,
                "endpoints": [
                    {
                        "id": stable_hex("endpoint", kind, face),
                        "interface": face,
                        "region": region,
                        "region_id": region,
                        "url": url,
                    }
                    for face in ("public", "internal", "admin")
                ],
            }
            for kind, name, url in services
        ]


def _in_default(given: dict[str, Any]) -> bool:
    """Whether a user or project is named within the only domain there is."""
    domain = given.get("domain") or {}
    return domain.get("id") == "default" or str(domain.get("name", "")).lower() == "default"


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        raise _Denied(400, f"Expecting to find valid JSON in request body. {_MALFORMED}") from None
