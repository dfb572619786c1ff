"""What Celery runs: thin tasks over the service's knowledge, and the driver."""
