"""Environment → frozen settings. Only entry points read them; everything below gets values handed in."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.errors import Fault, SettingsInvalid


class Settings(BaseSettings):
    """All that `REBUILD_*` can say; see docs/reference/settings.md."""

    model_config = SettingsConfigDict(env_prefix="REBUILD_", frozen=True, extra="ignore")

    database_url: str = ""
    """`postgresql://…`; empty where a process is given none (`rebuildctl up` starts its own)."""
    redis_url: str = ""
    """`redis://…`, `rediss://…` or `unix://…` (Redis 7 or later, or Valkey)."""
    api_url: str = "http://127.0.0.1:8080"
    token: str = Field(default="", repr=False)
    state_dir: Path = Path("~/.local/state/rebuild")
    bind: str = "127.0.0.1:8080"
    clouds: Annotated[tuple[str, ...], NoDecode] = ()
    """Names of clouds that may be used, comma-separated; empty allows all of clouds.yaml."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    failpoints: str = ""
    """For tests and drills: where this process is to crash, stop, stall or fail (orchestrator/failpoints.py)."""

    @field_validator("clouds", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("state_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return Path(os.path.expandvars(value)).expanduser()

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @classmethod
    def read(cls) -> Self:
        """The settings of this process's environment.

        Raises `SettingsInvalid`, with one fault a variable.
        """
        try:
            return cls()
        except ValidationError as e:
            faults = [
                Fault(
                    path="REBUILD_" + "_".join(str(p) for p in err["loc"]).upper(), code=err["type"], message=err["msg"]
                )
                for err in e.errors()
            ]
            raise SettingsInvalid("; ".join(f"{f.path}: {f.message}" for f in faults), errors=faults) from None
