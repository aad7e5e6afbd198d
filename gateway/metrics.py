"""What Prometheus reads at /metrics."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)


class Metrics:
    """Of one gateway, in a registry of its own. `route` is the path of a route, never what a caller typed."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "vita_gateway_requests", "Requests and WebSockets that ended", ("route", "status"), registry=registry
        )
        self.running = Gauge("vita_gateway_requests_running", "Requests and open WebSockets", registry=registry)
        self.streams = Gauge(
            "vita_gateway_streams_running", "Requests that generate, and conversations", ("route",), registry=registry
        )
        self.first_sound = Histogram(
            "vita_gateway_first_sound_seconds",
            "From the beginning of an answer to its first sound",
            ("route",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.sound = Counter("vita_gateway_sound_seconds", "Sound that was made", ("key",), registry=registry)
        self.server_ready = Gauge(
            "vita_gateway_server_ready", "1: the server behind the gateway is ready", ("server",), registry=registry
        )
        self.server_streams = Gauge(
            "vita_gateway_server_streams_running",
            "Requests and turns that use the server behind the gateway",
            ("server",),
            registry=registry,
        )
        self.sent_again = Counter(
            "vita_gateway_requests_sent_again",
            "Requests that this server lost or refused, sent to another one",
            ("server",),
            registry=registry,
        )

    def forget(self, server: str) -> None:
        """Nothing more is said of a server."""
        for metric in (self.server_ready, self.server_streams, self.sent_again):
            with suppress(KeyError):  # it has never lost a request, say
                metric.remove(server)
