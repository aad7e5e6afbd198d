"""The check at the start of the audio networks: kernels that are wrong or do not compile, and what serves then."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch_cuda.kernels import audio_check, compile_cache
from vita_audio.engines.torch_cuda.kernels.audio_check import audio_operations, faulty
from vita_audio.engines.torch_cuda.kernels.audio_operations import REFERENCES, AudioOperations
from vita_audio.engines.torch_cuda.kernels.names import AUDIO_NAMES, kernel_names

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(audio_check, "INSTALLED", True)
    caplog.set_level(logging.WARNING)
    faulty.cache_clear()
    yield
    faulty.cache_clear()


def wrong(*arguments: Any) -> torch.Tensor:
    return REFERENCES.group_norm(*arguments) * 1.01


def no_compiler(*_: Any) -> Any:
    raise RuntimeError("Failed to find C compiler.\nPlease set CC")


def test_kernels_that_agree_serve(caplog: pytest.LogCaptureFixture) -> None:
    assert faulty(CPU, frozenset(), REFERENCES) == frozenset()
    assert not caplog.records


@pytest.mark.parametrize(
    ("kernels", "name", "why"),
    [
        (replace(REFERENCES, group_norm=wrong), "group_norm", "numbers of [2, 50, 256] float32 differ"),
        (replace(REFERENCES, layer_norm=no_compiler), "layer_norm", "RuntimeError: Failed to find C compiler."),
        (replace(REFERENCES, snake=no_compiler), "snake", "RuntimeError: Failed to find C compiler."),
    ],
)
def test_a_kernel_that_cannot_serve_is_off(
    kernels: AudioOperations, name: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert faulty(CPU, frozenset(), kernels) == frozenset({name})
    assert caplog.messages[0].startswith(f"kernel {name} is off, its reference runs")
    assert why in caplog.text
    caplog.clear()
    assert faulty(CPU, frozenset({name}), kernels) == frozenset()  # off already: not tried
    assert not caplog.records


def test_without_the_language_or_a_folder_all_are_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compile_cache, "make_writable", lambda: False)
    assert faulty(CPU, frozenset(), REFERENCES) == frozenset(AUDIO_NAMES)
    assert "no folder for compiled kernels" in caplog.text
    monkeypatch.setattr(audio_check, "INSTALLED", False)
    assert faulty(CPU, frozenset({"snake"}), REFERENCES) == frozenset(AUDIO_NAMES)
    assert "`triton` is not installed" in caplog.text


def test_what_serves_on_a_gpu_is_what_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_check, "faulty", lambda device, off: frozenset({"snake"}))
    found = audio_operations(torch.device("cuda"), frozenset({"layer_norm", "gate"}))
    assert found == replace(audio_check.KERNELS, snake=REFERENCES.snake, layer_norm=REFERENCES.layer_norm)
    assert audio_operations(CPU) is REFERENCES


def test_names_of_both_kinds_are_read() -> None:
    assert kernel_names("snake, gate") == {"snake", "gate"}
    with pytest.raises(EngineError, match=r"'snakes' is not valid: names between commas of norm, .*pdl, layer_norm"):
        kernel_names("snakes")
