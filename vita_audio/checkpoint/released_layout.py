"""Writes the parts of a checkpoint bundle in the released layout: the inverse of `vita_audio.checkpoint.files`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vita_audio.checkpoint.audio_decoder_config import write_audio_decoder_yaml
from vita_audio.checkpoint.configs import FlowConfig, LanguageModelConfig, SpeechTokenizerConfig, VocoderConfig
from vita_audio.checkpoint.files import split_weight_norm
from vita_audio.contract.limits import DEFAULT_REPETITION_PENALTY
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.vocabulary import Vocabulary


def write_language_model(
    folder: Path,
    config: LanguageModelConfig,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Tensor],
    pattern: Sequence[int] = NAMED_MODES["boost"],
    samples: bool = True,
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY,
) -> None:
    """Write config.json, generation_config.json and model.safetensors; the tokenizer's files are the caller's.

    Arguments: `write_language_model_config`.
    """
    write_language_model_config(folder, config, vocabulary, _dtype(tensors), pattern, samples, repetition_penalty)
    _save_tensors(tensors, folder / "model.safetensors")


def write_language_model_config(
    folder: Path,
    config: LanguageModelConfig,
    vocabulary: Vocabulary,
    dtype: str,
    pattern: Sequence[int] = NAMED_MODES["boost"],
    samples: bool = True,
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY,
) -> None:
    """Write config.json and generation_config.json.

    Args:
        dtype: name of the type the weights are stored in.
        pattern: the mode it was trained for, the default of requests.
        samples: whether it reads text aloud with sampling by default.
        repetition_penalty: what it is asked with by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    architecture = {
        "architectures": ["Qwen2MTPForCausalLM"],
        "model_type": "qwen2_mtp",
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": vocabulary.end_of_text,
        "eos_token_id": vocabulary.im_end,
    }
    _write_json(folder / "config.json", {**architecture, **asdict(config)})
    generation = {
        "bos_token_id": vocabulary.end_of_text,
        "pad_token_id": vocabulary.end_of_text,
        "eos_token_id": list(vocabulary.end_tokens),
        "repetition_penalty": repetition_penalty,
        "do_sample": samples,
        "mtp_inference_mode": list(pattern),
    }
    _write_json(folder / "generation_config.json", generation)


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
        "torch_dtype": _dtype(tensors),
    }
    _write_json(folder / "config.json", {**architecture, **asdict(config)})
    preprocessor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": config.num_mel_bins,
        "sampling_rate": 16_000,
        "n_fft": 400,
        "hop_length": 160,
        "chunk_length": 30,
        "n_samples": 480_000,
        "nb_max_frames": 3_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }
    _write_json(folder / "preprocessor_config.json", preprocessor)
    _save_tensors(tensors, folder / "model.safetensors")


def write_audio_decoder(
    folder: Path,
    flow: FlowConfig,
    flow_tensors: Mapping[str, Tensor],
    vocoder: VocoderConfig,
    vocoder_tensors: Mapping[str, Tensor],
) -> None:
    """Write config.yaml, flow.pt and hift.pt (weight norm split, as the released file has it).

    Args:
        vocoder_tensors: state dict of `Vocoder`, weight norm folded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(write_audio_decoder_yaml(flow, vocoder), encoding="utf-8")
    torch.save(dict(flow_tensors), folder / "flow.pt")
    torch.save(split_weight_norm(vocoder_tensors), folder / "hift.pt")


def _dtype(tensors: Mapping[str, Tensor]) -> str:
    """Name of the dtype the weights are stored in."""
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private to this user; a server may be another


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
