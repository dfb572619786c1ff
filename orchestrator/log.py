"""One structlog pipeline for every process: API, workers, beat, rebuildctl and the libraries below them.

Standard-library loggers (Celery's, aiohttp's, SQLAlchemy's) run through the same processors, so a line looks the
same whoever wrote it. Secrets are masked here as the last line of defence; nothing above may rely on it.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET_KEYS = frozenset(
    {
        "adminpass",
        "admin_pass",
        "password",
        "token",
        "authorization",
        "secret",
        "user_data",
        "x-auth-token",
        "x-subject-token",
    }
)


def _mask(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if key.lower() in SECRET_KEYS:
            event[key] = "***"
    return event


def configure(level: str = "info", form: str = "auto") -> None:
    """Sets up logging for this process, once, at its entry point; lines go to stderr.

    `form`: `json`, `console`, or `auto` (console on a terminal, JSON elsewhere).
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    last: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not console:
        last.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*last, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in (
        "keystoneauth",
        "urllib3",
        "openstack",
        "stevedore",
        "sqlalchemy.engine",
        "aiohttp.access",
        "kombu",
        "amqp",
        "asyncio",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger that says `event` plus key=value pairs."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
