"""The fleet-rebuild orchestrator: the service and all its knowledge; `workers` is what Celery runs."""
