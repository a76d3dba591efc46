"""The numbers of a server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measured:
    """Counters, gauges and histograms of one server; names begin with `everclip_`."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        self.requests = Counter(
            "everclip_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=of
        )
        self.seconds = Histogram(
            "everclip_request_seconds", "Seconds to answer.", ["endpoint"], buckets=_SECONDS, registry=of
        )
        self.items = Histogram(
            "everclip_batch_items", "Items in a forward pass.", ["kind"], buckets=_SIZES, registry=of
        )
        self.batch_seconds = Histogram(
            "everclip_batch_seconds", "Seconds of a forward pass.", ["kind"], buckets=_SECONDS, registry=of
        )
        self.serving = Gauge("everclip_serving", "1 for the version that serves.", ["version"], registry=of)
        self.switches = Counter("everclip_switches", "Switches to another version.", registry=of)
        self.load_seconds = Gauge(
            "everclip_load_seconds", "Seconds to load the version that serves.", registry=of
        )
        self.failures = Counter(
            "everclip_switch_failures", "Versions that should have served and could not.", registry=of
        )
        self.shadow = Counter(
            "everclip_shadow",
            "Answers of the shadow version by what came of them.",
            ["kind", "outcome"],
            registry=of,
        )
        self.shadow_overlap = Histogram(
            "everclip_shadow_overlap",
            "Share of the best answers that both versions give.",
            ["kind"],
            buckets=(0, 0.2, 0.4, 0.6, 0.8, 0.9999, 1),
            registry=of,
        )

    def watch(self, admitted: Callable[[], float], trouble: Callable[[], float]) -> None:
        """Let two gauges ask for their values: items that wait, and whether a version cannot serve."""
        waiting = Gauge(
            "everclip_waiting", "Images and texts admitted and not answered.", registry=self.registry
        )
        waiting.set_function(admitted)
        broken = Gauge(
            "everclip_trouble",
            "1 if the version that should serve cannot: see /healthz.",
            registry=self.registry,
        )
        broken.set_function(trouble)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def batch(self, kind: str, items: int, seconds: float) -> None:
        """Count a forward pass."""
        self.items.labels(kind).observe(items)
        self.batch_seconds.labels(kind).observe(seconds)

    def switched(self, old: str | None, new: str, seconds: float) -> None:
        """Count a switch."""
        self.serving.clear()
        self.serving.labels(new).set(1)
        self.load_seconds.set(seconds)
        if old is not None:
            self.switches.inc()

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)
