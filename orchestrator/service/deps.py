"""What the use cases work with."""

from dataclasses import dataclass, field

import redis.asyncio as redis
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator.clouds.sign_in import TokenCache
from orchestrator.hints import Hints
from orchestrator.service.clouds import CloudBook


@dataclass(frozen=True, kw_only=True)
class Deps:
    """Everything a use case needs from outside."""

    engine: AsyncEngine
    hints: Hints
    clouds: CloudBook
    paces: redis.Redis
    """Where the limiters are shared with the workers."""
    tokens: TokenCache = field(default_factory=TokenCache)
    """For the few looks at a cloud that a request takes itself."""
    api_url: str
    """Where people reach this service: a plan's `url` begins with it. Without a slash at its end."""
