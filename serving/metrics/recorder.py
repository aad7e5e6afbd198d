"""Takes numbers from any thread at the price of a lock; the publisher takes out what is new."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

from serving.metrics.table import METRICS

#: Metric name and the values of its labels, in the order of the table.
Series = tuple[str, tuple[str, ...]]

#: Observations kept for a publisher that does not come: beyond that the oldest go.
MAX_OBSERVATIONS = 50_000


@dataclass(slots=True)
class Changes:
    """What was recorded since the last time: counters by how much, gauges as they are now, every observation."""

    counters: dict[Series, float] = field(default_factory=dict)
    gauges: dict[Series, float] = field(default_factory=dict)
    observations: deque[tuple[Series, float]] = field(default_factory=lambda: deque(maxlen=MAX_OBSERVATIONS))


class Recorder:
    """Each call names a metric of the table and all its labels.

    Raises:
        KeyError, ValueError: the table has no such metric, or it has other labels or another kind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new = Changes()
        self._totals: dict[Series, float] = {}

    def add(self, name: str, amount: float, **labels: str) -> None:
        """A counter goes up; an amount of 0 makes it appear, so that its first step is seen as one."""
        series = _series(name, "counter", labels)
        with self._lock:
            self._new.counters[series] = self._new.counters.get(series, 0.0) + amount

    def total(self, name: str, value: float, **labels: str) -> None:
        """A counter that is counted elsewhere stands at `value`. Not to be mixed with `add` for one series."""
        series = _series(name, "counter", labels)
        with self._lock:
            step = value - self._totals.get(series, 0.0)
            self._totals[series] = value
            self._new.counters[series] = self._new.counters.get(series, 0.0) + step

    def set(self, name: str, value: float, **labels: str) -> None:
        """A gauge stands at `value`."""
        series = _series(name, "gauge", labels)
        with self._lock:
            self._new.gauges[series] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """One more value for a histogram."""
        series = _series(name, "histogram", labels)
        with self._lock:
            self._new.observations.append((series, value))

    def take(self) -> Changes:
        """Everything recorded since the last call."""
        with self._lock:
            changes, self._new = self._new, Changes()
        return changes


def _series(name: str, kind: str, labels: dict[str, str]) -> Series:
    metric = METRICS[name]
    if metric.kind != kind or labels.keys() != set(metric.labels):
        raise ValueError(f"{name} is a {metric.kind} with labels {metric.labels}, not a {kind} with {tuple(labels)}")
    return name, tuple(labels[label] for label in metric.labels)
