"""The speech tokenizer of a checkpoint (a WhisperVQ folder): read and written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import ConfigFields, SpeechTokenizerConfig
from vita_audio.checkpoint.weight_files import (
    dtype_name,
    module_shapes,
    open_folder,
    open_safetensors,
    read_text,
    save_tensors,
    write_json,
)
from vita_audio.models.speech_tokenizer import SpeechTokenizer

#: Parts of a stored Whisper model beside the encoder layers in use (docs/audio.md 1).
_NOT_SPEECH_TOKENIZER = re.compile(r"ema_count|ema_weight|layer_norm\.(weight|bias)|(model\.)?(decoder|proj_out)\..*")
#: The feature extractor of `speech_features.py`: the only one supported.
PREPROCESSOR = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": 160, "chunk_length": 30}


def load_speech_tokenizer(folder: str | Path) -> tuple[SpeechTokenizerConfig, dict[str, Tensor]]:
    """Load a WhisperVQ folder: `config.json`, `model.safetensors` and, when there, `preprocessor_config.json`.

    Both released key forms are read: plain, and below `model.encoder.` with a decoder and layers beyond the quantizer,
    which are skipped. The golden layout (`speech_tokenizer.json`, `speech_tokenizer.safetensors`) is read too.

    Returns:
        The sizes and float32 tensors for `SpeechTokenizer.load_state_dict`.

    Raises:
        CheckpointError: as `load_language_model`.
    """
    folder = Path(folder)
    golden = folder / "speech_tokenizer.json"
    path = golden if golden.exists() else folder / "config.json"
    config = SpeechTokenizerConfig.from_json(read_text(path), str(path))
    _check_preprocessor(folder / "preprocessor_config.json", config)

    def rename(key: str) -> str | None:
        key = re.sub(r"^(model\.)?encoder\.", "", key)
        later_layer = re.match(r"layers\.(\d+)\.", key)
        unused = _NOT_SPEECH_TOKENIZER.fullmatch(key) or (later_layer and int(later_layer[1]) >= config.layers)
        return None if unused else key

    weights = golden.with_suffix(".safetensors")
    opened = open_safetensors({weights: None}, str(weights)) if golden.exists() else open_folder(folder)
    with opened as stored:
        return config, stored.renamed(rename).take(module_shapes(SpeechTokenizer, config), torch.float32)


def write_speech_tokenizer(folder: Path, config: SpeechTokenizerConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors of a WhisperVQ folder."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture = {
        "architectures": ["WhisperVQEncoder"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "encoder_layers": config.layers,
        "pooling_type": "avg",
        "pooling_position": config.quantize_position,
        "quantize_encoder_only": True,
        "encoder_causal_convolution": True,
        "encoder_causal_attention": False,
        "quantize_causal_encoder": False,
        "scale_embedding": False,
        "torch_dtype": dtype_name(tensors),
    }
    write_json(folder / "config.json", {**architecture, **asdict(config)})
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.num_mel_bins,
        **PREPROCESSOR,
        "n_samples": 480_000,
        "nb_max_frames": 3_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    save_tensors(tensors, folder / "model.safetensors")


def _check_preprocessor(path: Path, config: SpeechTokenizerConfig) -> None:
    """Refuse a feature extractor other than the one in `speech_features.py`."""
    if path.exists():
        fields = ConfigFields.from_json(read_text(path), str(path))
        fields.only("feature_size", config.num_mel_bins)
        for name, value in PREPROCESSOR.items():
            fields.only(name, value)
        fields.finish()
