"""How the load goes over a run: a warm-up, then constant, steps, spikes or a soak. Pure: seconds in, share out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from loadtest.errors import wrong

ShapeName = Literal["constant", "steps", "spikes", "soak"]
SHAPES: tuple[str, ...] = get_args(ShapeName)
#: Shares of the full load. Spikes: quiet, then full, twice. Soak: a tenth of the time to climb, the rest flat.
STEPS = (0.2, 0.4, 0.6, 0.8, 1.0)
_SPIKES = (("quiet 1", 3, 0.25), ("spike 1", 1, 1.0), ("quiet 2", 3, 0.25), ("spike 2", 1, 1.0), ("quiet 3", 2, 0.25))
_SOAK = (("climb 1", 1, 0.33), ("climb 2", 1, 0.66), ("soak", 18, 1.0))
WARM_UP = "warm-up"


@dataclass(frozen=True, slots=True)
class Phase:
    """`share` of the full load from `start_s` to `end_s`."""

    name: str
    start_s: float
    end_s: float
    share: float

    def users(self, most: int) -> int:
        """How many there are where `most` are the full load."""
        return max(1, round(most * self.share))


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """All phases of a run in order, without holes, from 0 to `end_s`."""

    phases: tuple[Phase, ...]

    @property
    def end_s(self) -> float:
        return self.phases[-1].end_s

    def at(self, second: float) -> Phase | None:
        """The phase of this moment; None after the end."""
        return next((phase for phase in self.phases if second < phase.end_s), None)


def load_plan(shape: str, run_time_s: float, warm_up_s: float) -> LoadPlan:
    """The plan of a run of `run_time_s`, of which the first `warm_up_s` are at the load the shape begins with.

    Raises:
        LoadTestError: no such shape, or no time left after the warm-up.
    """
    if not 0 <= warm_up_s < run_time_s:
        raise wrong("--warm-up", warm_up_s, f"it is from 0 to less than the run time ({run_time_s:g} s)")
    parts: tuple[tuple[str, float, float], ...]
    if shape == "constant":
        parts = (("constant", 1, 1.0),)
    elif shape == "steps":
        parts = tuple((f"{share:.0%}", 1, share) for share in STEPS)
    elif shape == "spikes":
        parts = _SPIKES
    elif shape == "soak":
        parts = _SOAK
    else:
        raise wrong("--shape", shape, f"it is one of {', '.join(SHAPES)}")
    phases = [Phase(WARM_UP, 0.0, warm_up_s, parts[0][2])] if warm_up_s else []
    unit_s = (run_time_s - warm_up_s) / sum(weight for _, weight, _ in parts)
    start_s = warm_up_s
    for name, weight, share in parts:
        phases.append(Phase(name, start_s, start_s + weight * unit_s, share))
        start_s += weight * unit_s
    return LoadPlan(tuple(phases))
