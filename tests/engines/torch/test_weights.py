"""Weights of the torch engines as files: those that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_audio.contract.errors import EngineError
from vita_audio.engines.torch.weights import StoredTensors, load_weights_file


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(b"x" * 10)
    for name in ("short.safetensors", "missing.safetensors"):
        for read in (StoredTensors, load_weights_file):
            with pytest.raises(EngineError, match=f"{name}: not readable weights .*build the engines again"):
                read(tmp_path / name)
