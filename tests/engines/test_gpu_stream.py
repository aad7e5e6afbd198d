"""A stream for each worker of a process, whose priority its graphs keep; PyTorch's calls are noted, not made."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vita_audio.engines.gpu_stream import HIGH, NORMAL, own_stream
from vita_audio.engines.torch_cuda.cuda_graphs import Capturer


class Stream(SimpleNamespace):
    def __init__(self, device: torch.device, priority: int = 0) -> None:
        super().__init__(device=device, priority=priority)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """The streams that were made current, the last one last."""
    streams = [Stream(torch.device("cuda:0"))]
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return streams


def source(engine: str | None = "torch_cuda", device: str = "cuda:0") -> Any:
    return SimpleNamespace(gpu=engine and SimpleNamespace(engine=engine), device=device)


def test_all_threads_of_a_worker_share_its_stream_and_graphs_keep_its_priority(current: list[Stream]) -> None:
    decoder, language_model = own_stream(source(), first=False), own_stream(source(), first=True)
    for enter in (decoder, decoder, language_model):
        enter()
    assert current[1] is current[2]
    assert current[3] is not current[1]
    assert [stream.priority for stream in current[1:]] == [NORMAL, NORMAL, HIGH]
    assert current[1].device == torch.device("cuda:0")
    assert Capturer(torch.device("cuda:0"))._stream.priority == HIGH
    decoder()
    assert Capturer(torch.device("cuda:0"))._stream.priority == NORMAL


@pytest.mark.parametrize("given", [source(None), source("tensorrt_llm"), source(device="cpu")])
def test_other_engines_are_left_alone(current: list[Stream], given: Any) -> None:
    own_stream(given, first=True)()
    assert len(current) == 1
