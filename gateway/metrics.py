"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram


class Metrics:
    """Of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_sound = Histogram(
            "vita_gateway_first_sound_seconds",
            "From the request, or the end of a turn, to the first sound that was sent",
            ("route",),
            registry=self.registry,
            buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30),
        )
