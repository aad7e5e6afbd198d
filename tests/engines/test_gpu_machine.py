"""The machine as nvidia-smi and the environment describe it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_machines import H100, with_nvidia_smi
from vita_audio.engines.gpu_machine import Gpu, find_machine


def test_the_machine_is_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Gpu("NVIDIA L4", "8.9", 23_034 << 20)
    monkeypatch.setenv("PATH", with_nvidia_smi(tmp_path / "bin", H100, small)["PATH"])
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "26.07")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_machine().gpus == (H100, small)
    assert find_machine().container == "tritonserver 26.07"
    assert find_machine().compute_capability == "9.0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert find_machine().gpus == (small,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_machine().gpus == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert find_machine().gpus == (H100, small)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_machine().gpus == ()
    assert find_machine().compute_capability == "none"
