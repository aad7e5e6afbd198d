"""The language model of a checkpoint (a Hugging Face folder, qwen2_mtp): checked as a whole, read, written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vita_audio.checkpoint.configs import SENSEVOICE, SPEECH_TOKENIZER, LanguageModelConfig
from vita_audio.checkpoint.weight_files import (
    Shapes,
    compare,
    dtype_name,
    open_folder,
    read_text,
    save_tensors,
    write_json,
)
from vita_audio.contract.errors import CheckpointError
from vita_audio.contract.limits import DEFAULT_REPETITION_PENALTY
from vita_audio.contract.modes import NAMED_MODES
from vita_audio.text.normalization import NONE
from vita_audio.text.vocabulary import Vocabulary

#: How a checkpoint takes speech in -> what its config.json says.
MODEL_TYPES = {SPEECH_TOKENIZER: "qwen2_mtp", SENSEVOICE: "qwen2_mtp_sensevoice"}
ARCHITECTURES = {SPEECH_TOKENIZER: "Qwen2MTPForCausalLM", SENSEVOICE: "Qwen2MTPSenseVoiceForCausalLM"}
#: Parts of Plus checkpoints that are not the language model (docs/audio.md 9).
NOT_LANGUAGE_MODEL = ("model.audio_model.", "model.audio_projection.")


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


@dataclass(frozen=True, slots=True)
class ReleasedCheckpoint:
    """A folder with config.json and safetensors that fit it."""

    folder: Path
    config: LanguageModelConfig

    def read(self, key: str) -> Tensor:
        """One tensor as stored. The files are opened for it alone: what was read earlier leaves the memory."""
        with open_folder(self.folder) as weights:
            return weights.readers[key]()

    def fingerprint(self) -> dict[str, list[int]]:
        """Name -> size and time of last change, of all files it is read from."""
        files = (self.folder / "config.json", *sorted(self.folder.glob("*.safetensors*")))
        return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def open_language_model(folder: Path) -> ReleasedCheckpoint:
    """Check a Hugging Face folder without reading its weights.

    Raises:
        CheckpointError: files are missing or unreadable, weights do not fit the config, or the tokenizer beside them
            has more tokens than there are rows.
    """
    config = LanguageModelConfig.from_json(read_text(folder / "config.json"), str(folder / "config.json"))
    with open_folder(folder) as weights:
        if faults := list(weights.faults):
            raise CheckpointError(f"{folder}: {'; '.join(faults)}; download the checkpoint again")
        found = {key: shape for key, shape in weights.shapes.items() if not key.startswith(NOT_LANGUAGE_MODEL)}
    _check_modules(folder, config, found)
    _check_vocabulary(folder, config, found)
    if faults := compare(found, language_model_shapes(config)):
        raise CheckpointError(f"{folder}: {'; '.join(faults)}; use the config.json that came with the weights")
    return ReleasedCheckpoint(folder, config)


def _check_modules(folder: Path, config: LanguageModelConfig, found: Shapes) -> None:
    stored = sum(bool(re.fullmatch(r"mtp_projs\.\d+\.weight", key)) for key in found)
    if stored != config.mctp_modules:
        raise CheckpointError(
            f"{folder / 'config.json'}: num_nextn_predict_layers is {config.mctp_modules} but the weights hold "
            f"{stored} MCTP modules; use the config.json that came with the weights"
        )


def _check_vocabulary(folder: Path, config: LanguageModelConfig, found: Shapes) -> None:
    rows = found.get("model.embed_tokens.weight", (config.vocab_size,))[0]
    if rows != config.vocab_size:
        raise CheckpointError(
            f"{folder / 'config.json'}: vocab_size is {config.vocab_size} but model.embed_tokens.weight has {rows} "
            "rows; use the config.json that came with the weights"
        )
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists() and (tokens := Vocabulary.from_tokenizer(tokenizer).tokens) > config.vocab_size:
        raise CheckpointError(
            f"{tokenizer}: has {tokens} tokens but the model only {config.vocab_size} rows (vocab_size); "
            "use the tokenizer that came with the weights"
        )


def write_language_model(
    folder: Path,
    config: LanguageModelConfig,
    vocabulary: Vocabulary,
    tensors: Mapping[str, Tensor],
    pattern: Sequence[int] = NAMED_MODES["boost"],
    samples: bool = True,
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY,
    text_normalization: str = NONE,
) -> None:
    """Write config.json, generation_config.json and model.safetensors; the tokenizer's files are the caller's.

    Arguments: `write_language_model_config`.
    """
    write_language_model_config(
        folder, config, vocabulary, dtype_name(tensors), pattern, samples, repetition_penalty, text_normalization
    )
    save_tensors(tensors, folder / "model.safetensors")


def write_language_model_config(
    folder: Path,
    config: LanguageModelConfig,
    vocabulary: Vocabulary,
    dtype: str,
    pattern: Sequence[int] = NAMED_MODES["boost"],
    samples: bool = True,
    repetition_penalty: float = DEFAULT_REPETITION_PENALTY,
    text_normalization: str = NONE,
    speech_input: str = SPEECH_TOKENIZER,
) -> None:
    """Write config.json and generation_config.json.

    Args:
        dtype: name of the type the weights are stored in.
        pattern: the mode it was trained for, the default of requests.
        samples: whether it reads text aloud with sampling by default.
        repetition_penalty: what it is asked with by default.
        text_normalization: how text is written before it is read.
        speech_input: SPEECH_TOKENIZER, or SENSEVOICE of a Plus checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    architecture = {
        "architectures": [ARCHITECTURES[speech_input]],
        "model_type": MODEL_TYPES[speech_input],
        "hidden_act": "silu",
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "bos_token_id": vocabulary.end_of_text,
        "eos_token_id": vocabulary.im_end,
    }
    write_json(folder / "config.json", {**architecture, **asdict(config)})
    generation = {
        "bos_token_id": vocabulary.end_of_text,
        "pad_token_id": vocabulary.end_of_text,
        "eos_token_id": list(vocabulary.end_tokens),
        "repetition_penalty": repetition_penalty,
        "do_sample": samples,
        "mtp_inference_mode": list(pattern),
    }
    if text_normalization != NONE:
        generation["text_normalization"] = text_normalization
    write_json(folder / "generation_config.json", generation)
