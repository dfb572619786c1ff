"""What Prometheus reads."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from orchestrator.service.health import Work
from orchestrator.service.tail import Tail


class RequestMetrics:
    """Requests of this process. The registry is the application's own, so that two in a process don't meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rebuild_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "rebuild_http_request_seconds", "Time to answer.", ("method", "route"), registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 1, 3, 10),
        )  # fmt: skip
        self._streams = Gauge("rebuild_event_streams", "Streams of events that are open.", registry=self.registry)
        self._lag = Gauge(
            "rebuild_event_tail_lag_seconds", "Age of the newest event when it was handed on.", registry=self.registry
        )
        self._silence = Gauge(
            "rebuild_event_tail_silence_seconds", "Since the ledger last answered the tail.", registry=self.registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request; `route` is the route's pattern, never the path as given."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def page(self, tail: Tail, work: Work | None) -> bytes:
        """The text that Prometheus reads; `work` None: the ledger is away, and only this process is told of."""
        self._streams.set(tail.listeners)
        self._lag.set(tail.lag_seconds)
        self._silence.set(time.monotonic() - tail.read_at)
        text = generate_latest(self.registry)
        if work is None:
            return text
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_WorkCollector(work))
        return text + generate_latest(registry)


class _WorkCollector(Collector):
    def __init__(self, work: Work):
        self._work = work

    def collect(self) -> Iterable[GaugeMetricFamily]:
        plans = GaugeMetricFamily("rebuild_plans", "Plans by status.", labels=("status",))
        for status, n in self._work.plans.items():
            plans.add_metric((status,), n)
        jobs = GaugeMetricFamily("rebuild_jobs", "Jobs of unfinished plans by state.", labels=("state",))
        for state, n in self._work.jobs.items():
            jobs.add_metric((state,), n)
        allowed = GaugeMetricFamily(
            "rebuild_limiter_allowed_per_second", "Rebuild calls per second allowed.", labels=("cloud",)
        )
        used = GaugeMetricFamily("rebuild_limiter_used_per_second", "Rebuild calls per second made.", labels=("cloud",))
        for cloud, limiter in self._work.limiters.items():
            allowed.add_metric((cloud,), float(limiter.get("allowed") or 0))
            used.add_metric((cloud,), float(limiter.get("used_per_second") or 0))
        return plans, jobs, allowed, used
