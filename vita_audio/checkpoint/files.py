"""Released checkpoint layouts -> typed configs and tensors; one error names every fault of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vita_audio.checkpoint.audio_decoder_config import parse_audio_decoder_yaml
from vita_audio.checkpoint.configs import (
    ConfigFields,
    FlowConfig,
    LanguageModelConfig,
    SpeechTokenizerConfig,
    VocoderConfig,
)
from vita_audio.checkpoint.weight_files import (
    Shapes,
    Weights,
    open_folder,
    open_safetensors,
    open_torch_file,
    read_text,
)
from vita_audio.contract.errors import CheckpointError
from vita_audio.models.flow import Flow
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

#: Parts of Plus checkpoints that are not the language model (docs/audio.md 9).
NOT_LANGUAGE_MODEL = ("model.audio_model.", "model.audio_projection.")
#: Parts of a stored Whisper model beside the encoder layers in use (docs/audio.md 1).
_NOT_SPEECH_TOKENIZER = re.compile(r"ema_count|ema_weight|layer_norm\.(weight|bias)|(model\.)?(decoder|proj_out)\..*")


def load_language_model(
    folder: str | Path, dtype: torch.dtype | None = torch.float32
) -> tuple[LanguageModelConfig, dict[str, Tensor]]:
    """Load `config.json` and `model.safetensors` (or the shards of its index) of a qwen2_mtp checkpoint.

    Args:
        folder: the Hugging Face folder.
        dtype: convert every tensor to it; None keeps what is stored.

    Returns:
        The sizes and the tensors under their released keys (docs/model.md); `lm_head.weight` is the
        embedding when the two are tied.

    Raises:
        CheckpointError: a file is missing or unreadable, or keys or shapes do not fit the config; names all of them.
    """
    folder = Path(folder)
    config = LanguageModelConfig.from_json(read_text(folder / "config.json"), str(folder / "config.json"))
    with open_folder(folder) as weights:
        own = weights.renamed(lambda key: None if key.startswith(NOT_LANGUAGE_MODEL) else key)
        tensors = own.take(language_model_shapes(config), dtype)
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return config, tensors


def language_model_shapes(config: LanguageModelConfig) -> Shapes:
    """Key -> shape of every stored tensor of a language model of this size (docs/model.md)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kv_size = config.num_key_value_heads * config.head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv_size), ("v", kv_size)):
            shapes[layer + f"self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[layer + f"self_attn.{name}_proj.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[layer + "mlp.gate_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, inner)
    for index in range(config.mctp_modules):
        shapes[f"mtp_projs.{index}.weight"] = (hidden, 2 * hidden)
        shapes[f"mtp_embed_norms.{index}.weight"] = (hidden,)
        shapes[f"mtp_hidden_norms.{index}.weight"] = (hidden,)
    return shapes


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
        return config, stored.renamed(rename).take(_module_shapes(SpeechTokenizer, config), torch.float32)


def load_flow(folder: str | Path) -> tuple[FlowConfig, dict[str, Tensor]]:
    """Load the flow of an `audio_decoder` folder: `config.yaml` + `flow.pt` (or golden `flow.json` + `.safetensors`).

    Returns:
        The sizes and float32 tensors for `Flow.load_state_dict`.

    Raises:
        CheckpointError: as `load_language_model`; also when the torch file holds anything but tensors.
    """
    folder = Path(folder)
    if (folder / "flow.json").exists():
        path = folder / "flow.safetensors"
        with open_safetensors({path: None}, str(path)) as weights:
            config = FlowConfig.from_fields(_flat_fields(folder / "flow.json", _flow_sizes(weights.shapes)))
            return config, weights.take(_module_shapes(Flow, config), torch.float32)
    config, _ = _yaml_sizes(folder)
    return config, open_torch_file(folder / "flow.pt").take(_module_shapes(Flow, config), torch.float32)


def load_vocoder(folder: str | Path) -> tuple[VocoderConfig, dict[str, Tensor]]:
    """Load the vocoder of an `audio_decoder` folder: `config.yaml` + `hift.pt` (or golden `hift.json` + weights).

    Returns:
        The sizes and float32 tensors for `Vocoder.load_state_dict`, weight norm folded.

    Raises:
        CheckpointError: as `load_flow`.
    """
    folder = Path(folder)
    if (folder / "hift.json").exists():
        path = folder / "hift.safetensors"
        with open_safetensors({path: None}, str(path)) as weights:
            config = VocoderConfig.from_fields(_flat_fields(folder / "hift.json", _vocoder_sizes(weights.shapes)))
            return config, _take_folded(weights, config)
    _, config = _yaml_sizes(folder)
    return config, _take_folded(open_torch_file(folder / "hift.pt"), config)


def fold_weight_norm(direction: Tensor, magnitude: Tensor) -> Tensor:
    """w = g v / ||v||, the norm over all axes but the first (of a transposed convolution: its input channels)."""
    norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.dim() - 1))
    return direction * (magnitude / norm)


def split_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released form of a folded vocoder state dict: `weight` -> `weight_g`, `weight_v` where `hift.pt` has them."""
    split: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if _is_weight_normed(key):
            norm = value.flatten(1).norm(dim=1)
            split[key + "_g"], split[key + "_v"] = norm.view(-1, *[1] * (value.dim() - 1)), value.clone()
        else:
            split[key] = value
    return split


def _is_weight_normed(key: str) -> bool:
    """All convolutions of the vocoder but the source's down-sampling; linear layers have none (docs/audio.md 3)."""
    linear = ("source_downs.", "m_source.", "f0_predictor.classifier.")
    return key.endswith(".weight") and not key.startswith(linear)


def _take_folded(weights: Weights, config: VocoderConfig) -> dict[str, Tensor]:
    expected = _module_shapes(Vocoder, config)
    stored: Shapes = {}
    for key, shape in expected.items():
        if _is_weight_normed(key) and key not in weights.shapes:  # a file with folded weights is taken as it is
            stored[key + "_g"], stored[key + "_v"] = (shape[0], *[1] * (len(shape) - 1)), shape
        else:
            stored[key] = shape
    tensors = weights.take(stored, torch.float32)
    return {
        key: tensors[key] if key in tensors else fold_weight_norm(tensors[key + "_v"], tensors[key + "_g"])
        for key in expected
    }


def _module_shapes(module: type[nn.Module], config: object) -> Shapes:
    """Key -> shape of the state dict of a module of this size, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in module(config).state_dict().items()}


def _yaml_sizes(folder: Path) -> tuple[FlowConfig, VocoderConfig]:
    return parse_audio_decoder_yaml(read_text(folder / "config.yaml"), str(folder / "config.yaml"))


def _flat_fields(path: Path, from_weights: Mapping[str, int]) -> ConfigFields:
    """Fields of a flat JSON config; sizes it does not state are those of the weights."""
    fields = ConfigFields.from_json(read_text(path), str(path))
    fields.values = {**from_weights, **fields.values}
    return fields


def _flow_sizes(shapes: Shapes) -> dict[str, int]:
    speaker, encoder = shapes.get("spk_embed_affine_layer.weight"), shapes.get("encoder.after_norm.weight")
    sizes = dict(zip(("output_size", "spk_embed_dim"), speaker, strict=True)) if speaker and len(speaker) == 2 else {}
    return sizes | ({"encoder_output_size": encoder[0]} if encoder else {})


def _vocoder_sizes(shapes: Shapes) -> dict[str, int]:
    mixer, first = shapes.get("m_source.l_linear.weight"), shapes.get("f0_predictor.condnet.0.weight_v")
    sizes = {"nb_harmonics": mixer[1] - 1} if mixer and len(mixer) == 2 else {}
    return sizes | ({"in_channels": first[1], "f0_channels": first[0]} if first and len(first) == 3 else {})


def _check_preprocessor(path: Path, config: SpeechTokenizerConfig) -> None:
    """Refuse a feature extractor other than the one in `speech_features.py`."""
    if path.exists():
        fields = ConfigFields.from_json(read_text(path), str(path))
        for name, value in (("feature_size", config.num_mel_bins), ("sampling_rate", 16000), ("n_fft", 400)):
            fields.only(name, value)
        for name, value in (("hop_length", 160), ("chunk_length", 30)):
            fields.only(name, value)
        fields.finish()


__all__ = [
    "CheckpointError",
    "fold_weight_norm",
    "language_model_shapes",
    "load_flow",
    "load_language_model",
    "load_speech_tokenizer",
    "load_vocoder",
    "split_weight_norm",
]
