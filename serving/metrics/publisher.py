"""Carries the numbers of a model process to Triton's metrics port. Runs inside Triton's Python stubs only.

Each number is a call to Triton (`docs/metrics.md` has its price), so a thread makes them, a few times a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import triton_python_backend_utils as pb_utils  # exists in the stub only

from serving.heartbeat import Heartbeats
from serving.metrics.recorder import Recorder, Series
from serving.metrics.table import METRICS

_INTERVAL_S = 0.2
#: Rounds that may fail one after the other; with one more, a drain would have nothing to go by: the process ends.
_MAX_FAILURES = 50

log = logging.getLogger(__name__)


class MetricsPublisher:
    """Publishes what is given to `recorder`.

    Args:
        recorder: may be used by any thread.
        measure: called before every round, on the publisher's thread; records what is read rather than happens.
        heartbeats: of this process; their ages are published too.
    """

    def __init__(self, recorder: Recorder, measure: Callable[[], None], heartbeats: Heartbeats) -> None:
        self._recorder, self._measure = recorder, measure
        self._heartbeats, self._pulse = heartbeats, heartbeats.pulse("metrics")
        # A family must live as long as its metrics (docs/triton.md).
        self._families: dict[str, pb_utils.MetricFamily] = {}
        self._metrics: dict[Series, pb_utils.Metric] = {}
        self._gauges: dict[Series, float] = {}
        self._closing = threading.Event()
        self.publish()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Bring all metrics up to date. Counters and histograms add up over the processes that share a series."""
        self._measure()
        self._heartbeats.measure(self._recorder)
        changes = self._recorder.take()
        for series, step in changes.counters.items():
            if step or series not in self._metrics:
                self._metric(series).increment(step)
        for series, value in changes.gauges.items():
            if self._gauges.get(series) != value:
                self._metric(series).set(value)
                self._gauges[series] = value
        for series, value in changes.observations:
            self._metric(series).observe(value)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _metric(self, series: Series) -> pb_utils.Metric:
        if series not in self._metrics:
            name, values = series
            spec = METRICS[name]
            family = self._families.get(name)
            if family is None:
                kind = getattr(pb_utils.MetricFamily, spec.kind.upper())
                family = pb_utils.MetricFamily(name=name, description=spec.help, kind=kind)
                self._families[name] = family
            labels = dict(zip(spec.labels, values, strict=True))
            buckets = {"buckets": list(spec.buckets)} if spec.buckets else {}
            self._metrics[series] = family.Metric(labels=labels, **buckets)
        return self._metrics[series]

    def _run(self) -> None:
        failures = 0
        while failures <= _MAX_FAILURES and not self._closing.wait(_INTERVAL_S):
            self._pulse.beat()
            try:
                self.publish()
                failures = 0
            except Exception:  # one round is lost; a drain and the admission record need the next
                if not failures:
                    log.exception("publishing metrics failed")
                failures += 1
        if failures > _MAX_FAILURES:
            self._pulse.broken()
