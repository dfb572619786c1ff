"""Sessions of the status page: a cookie that proves a token without holding it.

The cookie is `token id . end . MAC`, under the stored hash of the token as the key. So no session is stored, every API
process can check one, and revoking or expiring the token ends it. The cost: whoever can read the tokens table could
make a session, though not a token; sessions only ever read.
"""

import hashlib
import hmac
import time
from uuid import UUID

from orchestrator.errors import Unauthenticated
from orchestrator.ledger.tokens import TokenRecord
from orchestrator.service.roles import Principal
from orchestrator.service.tokens import TokenChecker

COOKIE = "rebuild_session"
SESSION_SECONDS = 12 * 3600


async def open_session(checker: TokenChecker, secret: str) -> str:
    """The cookie of a new session for whoever knows the token. Raises `Unauthenticated`."""
    principal = await checker.by_secret(secret)
    record = await checker.record_of(principal.token_id)
    end = int(time.time()) + SESSION_SECONDS
    return f"{record.id}.{end}.{_mac(record, end)}"


async def principal_of_session(checker: TokenChecker, cookie: str) -> Principal:
    """Whose session this is. Raises `Unauthenticated` for one that has ended or was never given."""
    parts = cookie.split(".")
    if len(parts) != 3 or not parts[1].isascii() or not parts[1].isdigit() or len(parts[1]) > 12:
        raise Unauthenticated
    token_id, end = _uuid(parts[0]), int(parts[1])
    if token_id is None or end < time.time():
        raise Unauthenticated
    record = await checker.record_of(token_id)
    if not hmac.compare_digest(_mac(record, end).encode(), parts[2].encode()):
        raise Unauthenticated
    return await checker.by_id(token_id)


def _mac(record: TokenRecord, end: int) -> str:
    return hmac.new(bytes.fromhex(record.sha256), f"session:{record.id}:{end}".encode(), hashlib.sha256).hexdigest()


def _uuid(value: str) -> UUID | None:
    try:
        return UUID(value)
    except ValueError:
        return None
