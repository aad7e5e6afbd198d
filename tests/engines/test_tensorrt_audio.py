"""The flow's Euler steps on TensorRT, with a stand-in for the session: the inputs of each call, and their sum."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from vita_audio.engines.tensorrt_audio.audio import TensorRtFlow


class Program:
    """Its velocity is x + mu + cond + 10 t."""

    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {"t": torch.zeros(1)}
        self.output = torch.zeros(0)
        self.times: list[float] = []

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.inputs |= {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def enqueue(self) -> None:
        self.times.append(self.inputs["t"].item())
        self.output = sum((self.inputs[name] for name in ("x", "mu", "cond")), 10 * self.inputs["t"])

    def read(self, rows: int, tensor: torch.Tensor) -> np.ndarray:
        return tensor[:rows].numpy()


class Session:
    stream = None

    def __init__(self) -> None:
        self.one, self.geometries = Program(), []

    def program(self, geometry: Any) -> Program:
        self.geometries.append(geometry)
        return self.one


def test_each_step_is_taken_with_the_time_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    flow, session = TensorRtFlow.__new__(TensorRtFlow), Session()
    flow._velocity = session  # type: ignore[assignment]
    rng = np.random.default_rng(0)
    x, mu, cond = rng.standard_normal((3, 2, 4, 5)).astype(np.float32)
    times = [0.0, 0.1, 0.3, 1.0]
    expected = x.astype(np.float64)
    for start, stop in pairwise(times):
        expected = expected + (stop - start) * (expected + mu + cond + 10 * start)
    np.testing.assert_allclose(flow.solve(x, mu, cond, times), expected, rtol=1e-5)
    assert session.one.times == pytest.approx(times[:-1])
    assert len(session.geometries) == 1
