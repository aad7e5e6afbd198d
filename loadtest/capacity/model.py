"""A small model of one server, and what it says about loads that were not measured. Pure.

The server works on up to `slots` streams at once and shares itself between them; more wait in order, and beyond
`queue` waiting ones it refuses. A stream alone gets its sound at `alone_s` per second of sound; each further stream
adds `more_s`, because a step of continuous batching takes a fixed time plus a little for each stream in it:

    seconds for each second of sound, n running:   g(n) = alone_s + more_s * (n - 1)
    time to the first sound, n running:            f(n) = first_s + first_more_s * (n - 1), times exp(spread * normal)

Calls come at random (Poisson). Then the number of streams is a birth-death chain: it falls at n / (sound * g(n)) for n
up to the slots and stays at that rate above. A caller who meets n streams running is served as f(n + 1) says; one who
meets full slots waits for as many departures as are before it. What a caller meets is what the chain is in on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from loadtest.errors import LoadTestError

#: Streams needed before a line is put through them.
LEAST_STREAMS = 20
#: Where predicted quantiles are searched for, in seconds; quantiles of the normal for the spread.
_LONGEST_S, _MOST_HZ = 3600.0, 1e4
#: Nothing takes less time than this; a fitted line may dip below 0 where nobody measured.
_LEAST_S = 1e-4
#: States this rare change no percentile.
_NEVER = 1e-9
_NORMALS = np.array([-1.645, -1.036, -0.674, -0.385, -0.126, 0.126, 0.385, 0.674, 1.036, 1.645])


@dataclass(frozen=True, slots=True)
class Observation:
    """One finished stream, as a load point saw it. `running`: streams when it began, itself included; `mean_running`:
    over its life. `work_s`: seconds for all its sound, from its start. `ttfa_s` is None where nothing was heard."""

    running: int
    mean_running: float
    ttfa_s: float | None
    work_s: float
    sound_s: float


@dataclass(frozen=True, slots=True)
class ServerModel:
    """One server under one mix of calls; `sound_s` is the mean length of a stream's sound. See the module's text."""

    alone_s: float
    more_s: float
    first_s: float
    first_more_s: float
    spread: float
    sound_s: float
    slots: int
    queue: int

    def seconds_per_sound(self, running: NDArray[np.float64]) -> NDArray[np.float64]:
        """g(n): above 1 a listener hears breaks."""
        return self.alone_s + self.more_s * (running - 1)

    def with_turns(self, factor: float) -> ServerModel:
        """The same server when streams are `factor` times as long."""
        return replace(self, sound_s=self.sound_s * factor)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one rate at one server. Rates are shares of the calls that were taken (loss: of all)."""

    rate_hz: float
    ttfa_p50_ms: float
    ttfa_p95_ms: float
    underrun_rate: float
    loss_rate: float
    mean_running: float
    sound_s_per_s: float


def fit(observations: Sequence[Observation], slots: int, queue: int) -> ServerModel:
    """The model of what was seen; two straight lines, by least squares.

    Raises:
        LoadTestError: too few streams, or all at the same load.
    """
    spoken = [o for o in observations if o.ttfa_s is not None and o.sound_s > 0]
    if len(spoken) < LEAST_STREAMS:
        raise LoadTestError(
            f"{len(spoken)} streams with sound are too few to fit a model, it takes {LEAST_STREAMS}; "
            "load longer (--point-seconds)"
        )
    running = np.array([min(o.mean_running, slots) for o in spoken], dtype=np.float64)
    if np.ptp(running) < 0.5:
        raise LoadTestError(
            f"all streams ran at the same load ({running.mean():.1f} at once): no slope can be fitted; search wider"
        )
    sound = np.array([o.sound_s for o in spoken], dtype=np.float64)
    # work = sound * g(n): weighted by the sound, so that short streams do not drown the long ones.
    alone_s, more_s = _line(running - 1, np.array([o.work_s for o in spoken]) / sound, weights=sound)
    free = [o for o in spoken if o.running <= slots]  # nobody waited for a slot
    ttfa = np.array([o.ttfa_s for o in free], dtype=float)
    first_s, first_more_s = _line(np.array([o.running for o in free]) - 1.0, ttfa, weights=np.ones(len(free)))
    expected = first_s + first_more_s * (np.array([o.running for o in free]) - 1.0)
    spread = float(np.std(np.log(np.maximum(ttfa, 1e-6) / np.maximum(expected, 1e-6)))) if len(free) > 1 else 0.0
    return ServerModel(alone_s, more_s, first_s, first_more_s, spread, float(sound.mean()), slots, queue)


def predict(model: ServerModel, rate_hz: float, servers: int = 1) -> Prediction:
    """What callers get at this rate, spread evenly at random over `servers` equal servers."""
    each_hz = rate_hz / servers
    callers = _callers(model, each_hz)
    share, _ = _states(model, each_hz)
    present = np.minimum(np.arange(len(share)), model.slots)
    return Prediction(
        rate_hz=rate_hz,
        ttfa_p50_ms=_quantile(callers, 0.50) * 1e3,
        ttfa_p95_ms=_quantile(callers, 0.95) * 1e3,
        underrun_rate=_underrun_rate(model, callers),
        loss_rate=callers.refused,
        mean_running=float((share * present).sum()),
        sound_s_per_s=servers * each_hz * (1 - callers.refused) * model.sound_s,
    )


def capacity_hz(
    model: ServerModel, ttfa_p95_ms: float, underrun_rate: float, loss_rate: float, servers: int = 1
) -> float:
    """The highest rate the model lets through; 0 if it lets none."""

    def kept(rate_hz: float) -> bool:
        callers = _callers(model, rate_hz / servers)
        if callers.refused > loss_rate or _underrun_rate(model, callers) > underrun_rate:
            return False
        return callers.heard_within(ttfa_p95_ms / 1e3) >= 0.95

    low, high = 0.0, 1e-3
    while kept(high) and high < _MOST_HZ:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class _Callers:
    """What the callers meet who are taken: shares of them, streams running with theirs, departures to wait for first.

    All arrays are [met]. `first_s`: time to the first sound once begun, [met, spread]; `full_hz`: departures per second
    of a full server; `refused`: share of all callers who are not taken.
    """

    share: NDArray[np.float64]
    running: NDArray[np.float64]
    waits_for: NDArray[np.int64]
    first_s: NDArray[np.float64]
    full_hz: float
    refused: float

    def heard_within(self, seconds: float) -> float:
        """Share of the callers who are heard within this time."""
        inside = (self.first_s <= seconds).mean(axis=1)
        late = self.waits_for > 0
        if late.any():
            left_s = np.maximum(seconds - self.first_s[late], 0.0)
            inside[late] = _erlang_cdf(self.waits_for[late, None], self.full_hz * left_s).mean(axis=1)
        return float((self.share * inside).sum())


def _callers(model: ServerModel, rate_hz: float) -> _Callers:
    share, leave_hz = _states(model, rate_hz)
    taken = share[:-1] / max(share[:-1].sum(), _NEVER)
    met = np.flatnonzero(taken > _NEVER)
    running = np.minimum(met + 1, model.slots).astype(float)
    first_s = np.maximum(model.first_s + model.first_more_s * (running - 1), _LEAST_S)
    return _Callers(
        share=taken[met],
        running=running,
        waits_for=np.maximum(met + 1 - model.slots, 0),
        first_s=first_s[:, None] * np.exp(model.spread * _NORMALS)[None, :],
        full_hz=float(leave_hz[model.slots]),
        refused=float(share[-1]),
    )


def _underrun_rate(model: ServerModel, callers: _Callers) -> float:
    return float(callers.share[model.seconds_per_sound(callers.running) > 1.0].sum())


def _states(model: ServerModel, rate_hz: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of time with n streams in the server, n = 0 to slots + queue, and the rates at which n falls."""
    states = np.arange(model.slots + model.queue + 1)
    running = np.minimum(states, model.slots).astype(float)
    with np.errstate(divide="ignore"):
        leave_hz = running / (model.sound_s * np.maximum(model.seconds_per_sound(running), _LEAST_S))
    logs = np.concatenate([[0.0], np.cumsum(np.log(rate_hz) - np.log(leave_hz[1:]))])
    share = np.exp(logs - logs.max())
    return share / share.sum(), leave_hz


def _quantile(callers: _Callers, part: float) -> float:
    """The time in seconds that `part` of the callers do not exceed, by halving."""
    low, high = 0.0, _LONGEST_S
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if callers.heard_within(middle) >= part else (middle, high)
    return high


def _erlang_cdf(stages: NDArray[np.int64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that `stages` events of a Poisson process happened when `mean` are expected (as a gamma)."""
    shape = np.maximum(stages, 1).astype(float)
    # Wilson and Hilferty: the cube root of a gamma variable is nearly normal. Exact enough below 1 % everywhere.
    z = ((np.maximum(mean, 1e-12) / shape) ** (1 / 3) - (1 - 1 / (9 * shape))) * np.sqrt(9 * shape)
    return np.asarray(0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2))))


def _line(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Level at x = 0 and slope, weighted least squares; no server gets faster with more streams: no slope below 0."""
    x_mean, y_mean = np.average(x, weights=weights), np.average(y, weights=weights)
    across = np.average((x - x_mean) ** 2, weights=weights)
    slope = 0.0 if across == 0 else float(np.average((x - x_mean) * (y - y_mean), weights=weights) / across)
    slope = max(slope, 0.0)
    return max(float(y_mean - slope * x_mean), _LEAST_S), slope
