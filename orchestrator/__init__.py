"""The fleet-rebuild orchestrator: the service and all its knowledge; `workers` is what Celery runs."""

from importlib.metadata import version

__version__ = version("fleet-rebuild")
