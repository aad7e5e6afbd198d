"""The golden Plus checkpoint's tower and projector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from safetensors.torch import load_file
from torch import Tensor

from vita_audio.checkpoint.configs import ConfigFields, SenseVoiceConfig
from vita_audio.models.sensevoice import SenseVoice

CLIPS = ("0.03", "0.5", "1.37", "4.2")
_PREFIXES = {"model.audio_model.model.": "tower.", "model.audio_projection.": "projector."}


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest error, as a share of the largest value; float32 of the same shape."""
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def encoder_conf(plus: Path) -> dict[str, object]:
    conf: dict[str, object] = yaml.safe_load((plus / "sensevoice" / "config.yaml").read_text())["encoder_conf"]
    return conf


def golden_sensevoice(plus: Path) -> SenseVoice:
    """Of `plus_vanilla`, in float32; `plus` is the folder tests/golden/plus."""
    stored = load_file(plus / "plus_vanilla" / "model.safetensors")
    width = stored["model.audio_projection.mlp.2.weight"].shape[0]
    model = SenseVoice(SenseVoiceConfig.from_fields(ConfigFields(encoder_conf(plus), "config.yaml"), width))
    model.load_state_dict(
        {
            key.replace(released, ours): value.float()
            for released, ours in _PREFIXES.items()
            for key, value in stored.items()
            if key.startswith(released) and ".ctc." not in key
        }
    )
    return model.eval().requires_grad_(False)


def golden_features(plus: Path) -> dict[str, Tensor]:
    """Clip -> normalised features [rows, 560]."""
    io = load_file(plus / "frontend_io.safetensors")
    return {clip: io[f"{clip}.features"] for clip in CLIPS}


def golden_embeddings(plus: Path) -> dict[str, np.ndarray]:
    """Clip -> what the authors' code makes of those features with `plus_vanilla` in float32: [rows + 4, 48]."""
    io = load_file(plus / "encoder_io.safetensors")  # numpy's reader has no bfloat16
    return {clip: io[f"{clip}.embeddings"].numpy() for clip in CLIPS}
