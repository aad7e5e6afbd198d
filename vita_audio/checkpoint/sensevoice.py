"""SenseVoice of a Plus checkpoint: its tensors in the language model's files, FunASR's files beside them.

The encoder's sizes are in FunASR's config.yaml, not in config.json. Of its other files only am.mvn is needed: the
sentencepiece model and `tokens.json` belong to the CTC head, which the Plus variant does not use (docs/plus.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from vita_audio.checkpoint.audio_decoder_config import read_yaml
from vita_audio.checkpoint.cmvn import CMVN_FILE, read_cmvn
from vita_audio.checkpoint.configs import ConfigFields, LanguageModelConfig, SenseVoiceConfig
from vita_audio.checkpoint.weight_files import (
    Shapes,
    Weights,
    compare,
    module_shapes,
    open_folder,
    read_text,
    write_json,
)
from vita_audio.contract.errors import CheckpointError
from vita_audio.engines.interface import Floats
from vita_audio.models.sensevoice import SenseVoice

CONFIG_FILE = "config.yaml"
#: Keys of a checkpoint begin with the first, those of `SenseVoice` with the second.
_PREFIXES = {"model.audio_model.model.": "tower.", "model.audio_projection.": "projector."}
#: The CTC head, which is not used.
CTC_PREFIX = "model.audio_model.model.ctc."
#: The front end of `sensevoice_features.py`: the only one supported.
_FRONT_END = {
    "fs": 16_000,
    "window": "hamming",
    "n_mels": 80,
    "frame_length": 25,
    "frame_shift": 10,
    "lfr_m": 7,
    "lfr_n": 6,
}

_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True, eq=False)
class SenseVoiceParts:
    """What SenseVoice computes with.

    Attributes:
        config: sizes.
        tensors: for `SenseVoice.load_state_dict`.
        feature_shift, feature_scale: of the stacked features, float32 [input_size] each.
    """

    config: SenseVoiceConfig
    tensors: dict[str, Tensor]
    feature_shift: Floats
    feature_scale: Floats


def read_sensevoice_config(folder: Path) -> SenseVoiceConfig:
    """Sizes from config.yaml and config.json of a Plus language model's folder; nothing else is read.

    Raises:
        CheckpointError: a file is missing or unreadable, or another architecture or front end is described.
    """
    config = LanguageModelConfig.from_json(read_text(folder / "config.json"), str(folder / "config.json"))
    path = folder / CONFIG_FILE
    document = read_yaml(read_text(path), str(path))
    sections = {name: document.get(name) for name in ("encoder_conf", "frontend_conf")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise CheckpointError(f"{path}: {name} is missing or no mapping; use the file that came with the weights")
    front_end = ConfigFields(sections["frontend_conf"] or {}, f"{path}: frontend_conf")
    for name, value in _FRONT_END.items():
        front_end.only(name, value)
    front_end.finish()
    encoder = ConfigFields(sections["encoder_conf"] or {}, f"{path}: encoder_conf")
    return SenseVoiceConfig.from_fields(encoder, config.hidden_size)


def check_sensevoice(folder: Path) -> SenseVoiceConfig:
    """Check SenseVoice of a Plus language model's folder without reading its weights.

    Raises:
        CheckpointError: config.yaml or am.mvn are missing or wrong, or the weights do not fit config.yaml; names all.
    """
    return _opened(folder, lambda weights, config: config)


def load_sensevoice(folder: str | Path, dtype: torch.dtype | None = torch.float32) -> SenseVoiceParts:
    """Load SenseVoice of a Plus language model's folder; of the weights, its own tensors alone are read.

    Args:
        folder: the Hugging Face folder, with config.yaml and am.mvn in it.
        dtype: convert every tensor to it; None keeps what is stored.

    Raises:
        CheckpointError: as `check_sensevoice`.
    """
    folder = Path(folder)

    def take(weights: Weights, config: SenseVoiceConfig) -> SenseVoiceParts:
        stored = weights.take(sensevoice_shapes(config), dtype)
        tensors = {_renamed(key): tensor for key, tensor in stored.items()}
        return SenseVoiceParts(config, tensors, *read_cmvn(folder / CMVN_FILE, config.input_size))

    return _opened(folder, take)


def sensevoice_shapes(config: SenseVoiceConfig) -> Shapes:
    """Key -> shape of every tensor that is used, as in a checkpoint."""
    return released_keys(module_shapes(SenseVoice, config))


def released_keys(values: Mapping[str, _Read]) -> dict[str, _Read]:
    """The same under a checkpoint's keys, from those of `SenseVoice`."""
    first = {ours: released for released, ours in _PREFIXES.items()}
    return {first[f"{part}."] + name: value for key, value in values.items() for part, _, name in (key.partition("."),)}


def write_sensevoice_files(folder: Path, config: SenseVoiceConfig, shift: Tensor, scale: Tensor) -> None:
    """Write configuration.json, config.yaml and am.mvn as FunASR reads them; tensors belong into the model's file.

    Args:
        shift, scale: of the features [input_size].
    """
    metas = {"init_param": "model.pt", "config": CONFIG_FILE, "frontend_conf": {"cmvn_file": CMVN_FILE}}
    write_json(folder / "configuration.json", {"framework": "pytorch", "file_path_metas": metas})
    sizes = asdict(config)
    del sizes["input_size"], sizes["embedding_size"]
    sizes["sanm_shfit"] = sizes.pop("sanm_shift")
    encoder = {
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "selfattention_layer_type": "sanm",
    }
    document: dict[str, Any] = {"encoder": "SenseVoiceEncoderSmall", "encoder_conf": {**sizes, **encoder}}
    document |= {"model": "SenseVoiceSmall", "frontend": "WavFrontend", "frontend_conf": _FRONT_END}
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    width = config.input_size
    lines = ["<Nnet>", f"<Splice> {width} {width}", "[ 0 ]"]
    for tag, values in (("AddShift", shift), ("Rescale", scale)):
        numbers = " ".join(f"{value:.6f}" for value in values.tolist())
        lines += [f"<{tag}> {width} {width}", f"<LearnRateCoef> 0 [ {numbers} ]"]
    (folder / CMVN_FILE).write_text("\n".join([*lines, "</Nnet>", ""]), encoding="utf-8")


def _opened(folder: Path, use: Callable[[Weights, SenseVoiceConfig], _Read]) -> _Read:
    """What `use` makes of the weights and sizes, once all is found to be right."""
    faults: list[str] = []
    config = None
    try:
        config = read_sensevoice_config(folder)
    except CheckpointError as error:
        faults.append(str(error))
    try:
        read_cmvn(folder / CMVN_FILE, SenseVoiceConfig().input_size)
    except CheckpointError as error:
        faults.append(str(error))
    if config is None or faults:
        raise CheckpointError("; ".join(faults))
    used = tuple(_PREFIXES)
    with open_folder(folder) as weights:
        own = weights.renamed(lambda key: key if key.startswith(used) and not key.startswith(CTC_PREFIX) else None)
        if wrong := own.faults + compare(own.shapes, sensevoice_shapes(config)):
            raise CheckpointError(
                f"{folder}: SenseVoice: {'; '.join(wrong)}; take {CONFIG_FILE} and the weights from one release"
            )
        return use(own, config)


def _renamed(key: str) -> str:
    """Key of a checkpoint -> key of `SenseVoice`."""
    released = next(prefix for prefix in _PREFIXES if key.startswith(prefix))
    return _PREFIXES[released] + key.removeprefix(released)
