"""What a service promises, and whether a run kept it."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.group import Group


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits over all streams after the warm-up.

    Args:
        ttfa_p95_ms: 95 % of the streams with sound have a TTFA (`loadtest.driver`) of at most this.
        underrun_rate: share of the streams with sound that break off at least once.
        loss_rate: share of all streams that were rejected, failed or did not finish.
    """

    ttfa_p95_ms: float = 500.0
    underrun_rate: float = 0.001
    loss_rate: float = 0.01


@dataclass(frozen=True, slots=True)
class Check:
    """One limit against what was measured; `value` is None where nothing was measured, and that is not kept."""

    name: str
    value: float | None
    limit: float
    unit: str

    @property
    def kept(self) -> bool:
        return self.value is not None and self.value <= self.limit

    def __str__(self) -> str:
        word, measured = "kept" if self.kept else "MISSED", "-" if self.value is None else self.shown(self.value)
        return f"SLO {word}: {self.name} {measured}, promised at most {self.shown(self.limit)}"

    def shown(self, value: float) -> str:
        """In the unit of a reader: ms as whole numbers, shares in percent."""
        return f"{value:.0f} ms" if self.unit == "ms" else f"{100 * value:.3g} %"


def verdict(group: Group, slo: Slo) -> tuple[Check, ...]:
    """All limits, in the order of `Slo`."""
    spoken = group.counts.get("spoken", 0)
    return (
        Check("TTFA P95", group.histogram("ttfa").percentile(95), slo.ttfa_p95_ms, "ms"),
        Check("underrun rate", group.counts.get("broken", 0) / spoken if spoken else None, slo.underrun_rate, ""),
        Check("loss rate", group.lost / group.streams if group.streams else None, slo.loss_rate, ""),
    )
