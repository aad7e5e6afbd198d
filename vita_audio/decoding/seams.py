"""How audible the seams of a streamed decode are: measured at the chunk boundaries, against points in between.

The flow is continued, not computed exactly (docs/audio.md 5.3), so the streamed wave differs from the one-shot wave;
what must not differ is how it behaves where two windows meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vita_audio.contract.rates import MEL_HOP_SAMPLES
from vita_audio.decoding.decoder import Pcm, StreamingDecoder

#: 10 ms at 22 050 Hz: how far a point's measures look to either side.
REACH_SAMPLES = 220
# On the hop grid, as the seams are: a vocoder's wave need not be alike at all places of a hop.
_INTERIOR_SPACING, _INTERIOR_DISTANCE = 3 * MEL_HOP_SAMPLES, 3 * REACH_SAMPLES
_FLOOR = 1.0  # int16 units added to magnitudes: below one quantisation step, nothing is heard


@dataclass(frozen=True, slots=True)
class Streamed:
    """A streamed decode and the samples at which its flow windows and its vocoder chunks meet."""

    pcm: Pcm
    flow_seams: list[int]
    vocoder_seams: list[int]


@dataclass(frozen=True, slots=True)
class PointMeasures:
    """One value per point.

    jump: step from the sample before the point to the one at it, over the rms step within 10 ms (1 is ordinary).
    flux_db: rms difference of the log spectra of the 10 ms before and the 10 ms after the point.
    distance_db: rms difference of the log spectra of stream and reference within 10 ms of the point.
    """

    jump: NDArray[np.float64]
    flux_db: NDArray[np.float64]
    distance_db: NDArray[np.float64]


def stream_all(decoder: StreamingDecoder, codes: Sequence[int], seed: int) -> Streamed:
    """Decode as a stream, noting where the parts meet (in samples)."""
    state = decoder.init(seed)
    decoder.feed(state, codes, end=True)
    parts, flow, vocoder = [np.zeros(0, np.int16)], [], []
    while decoder.due(state) is not None:
        parts += decoder.step([state])
        flow.append(MEL_HOP_SAMPLES * state.position.flow.final_frames)
        vocoder.append(MEL_HOP_SAMPLES * state.voiced_frames)
    pcm = np.concatenate(parts)
    return Streamed(pcm, _inside(flow, len(pcm)), _inside(vocoder, len(pcm)))


def interior_points(streamed: Streamed) -> list[int]:
    """Points all over the stream that are at least 30 ms away from every seam."""
    seams = np.array([0, *streamed.flow_seams, *streamed.vocoder_seams])
    points = _inside(range(_INTERIOR_SPACING, len(streamed.pcm), _INTERIOR_SPACING), len(streamed.pcm))
    return [point for point in points if np.abs(seams - point).min() >= _INTERIOR_DISTANCE]


def measure(pcm: Pcm, reference: Pcm, points: Sequence[int]) -> PointMeasures:
    """Measures of `pcm` at the points, each at least 10 ms inside; `reference` is the one-shot decode."""
    jumps, fluxes, distances = [], [], []
    for point in points:
        around = slice(point - REACH_SAMPLES, point + REACH_SAMPLES)
        steps = np.diff(pcm[around].astype(np.float64))
        jumps.append(abs(steps[REACH_SAMPLES - 1]) / (np.sqrt(np.mean(steps**2)) + 1e-9))
        before, after = pcm[point - REACH_SAMPLES : point], pcm[point : point + REACH_SAMPLES]
        fluxes.append(_spectral_difference_db(before, after))
        distances.append(_spectral_difference_db(pcm[around], reference[around]))
    return PointMeasures(np.array(jumps), np.array(fluxes), np.array(distances))


def compare(decoder: StreamingDecoder, codes: Sequence[int], seeds: Sequence[int]) -> dict[str, PointMeasures]:
    """Streamed against one-shot decodes: measures at the flow's seams, the vocoder's, and the points in between."""
    kinds: dict[str, list[PointMeasures]] = {"flow seams": [], "vocoder seams": [], "interior": []}
    for seed in seeds:
        streamed, reference = stream_all(decoder, codes, seed), decoder.decode_offline(codes, seed)
        points = (streamed.flow_seams, streamed.vocoder_seams, interior_points(streamed))
        for kind, where in zip(kinds, points, strict=True):
            kinds[kind].append(measure(streamed.pcm, reference, where))
    return {
        kind: PointMeasures(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("jump", "flux_db", "distance_db"))
        )
        for kind, parts in kinds.items()
    }


def _inside(points: Sequence[int] | range, samples: int) -> list[int]:
    return [point for point in points if REACH_SAMPLES <= point <= samples - REACH_SAMPLES]


def _spectral_difference_db(first: Pcm, second: Pcm) -> float:
    window = np.hanning(len(first))
    levels = [20 * np.log10(np.abs(np.fft.rfft(part * window)) + _FLOOR) for part in (first, second)]
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))
