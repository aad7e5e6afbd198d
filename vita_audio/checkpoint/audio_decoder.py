"""The audio decoder of a checkpoint (`audio_decoder/`: flow and vocoder): read and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vita_audio.checkpoint.audio_decoder_config import parse_audio_decoder_yaml, write_audio_decoder_yaml
from vita_audio.checkpoint.configs import ConfigFields, FlowConfig, VocoderConfig
from vita_audio.checkpoint.weight_files import (
    Shapes,
    Weights,
    module_shapes,
    open_safetensors,
    open_torch_file,
    read_text,
)
from vita_audio.models.flow import Flow
from vita_audio.models.vocoder import Vocoder


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
            return config, weights.take(module_shapes(Flow, config), torch.float32)
    config, _ = _yaml_sizes(folder)
    return config, open_torch_file(folder / "flow.pt").take(module_shapes(Flow, config), torch.float32)


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
    expected = module_shapes(Vocoder, config)
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
