"""Whose kernels go first: by a variable of CUDA with a process for each model, by streams where one has both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from serving import gpu_share
from serving.gpu_share import MPS_PRIORITY, share_gpu
from serving.settings import GPU_PRIORITIES, ServingSettings


@pytest.mark.parametrize("priority", GPU_PRIORITIES)
@pytest.mark.parametrize("model", GPU_PRIORITIES[1:])
def test_in_a_process_of_its_own_the_other_model_is_below_normal(
    monkeypatch: pytest.MonkeyPatch, priority: str, model: str
) -> None:
    monkeypatch.delenv(MPS_PRIORITY, raising=False)
    share_gpu(ServingSettings(Path(), gpu_priority=priority), None, model, alone=True)()  # type: ignore[arg-type]
    yields = priority != "equal" and priority != model
    assert os.environ.get(MPS_PRIORITY) == ("1" if yields else None)
    monkeypatch.delenv(MPS_PRIORITY, raising=False)


def test_in_one_process_the_model_that_goes_first_has_the_high_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MPS_PRIORITY, raising=False)
    asked: list[tuple[Any, bool]] = []

    def own_stream(source: Any, first: bool) -> Any:
        asked.append((source, first))
        return lambda: None

    monkeypatch.setattr(gpu_share, "own_stream", own_stream)
    for priority in GPU_PRIORITIES:
        for model in GPU_PRIORITIES[1:]:
            settings = ServingSettings(Path(), gpu_priority=priority)
            share_gpu(settings, "source", model, alone=False)()  # type: ignore[arg-type]
    assert asked == [("source", first) for first in (False, False, True, False, False, True)]
    assert MPS_PRIORITY not in os.environ
