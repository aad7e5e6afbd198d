"""A released language model checkpoint, checked as a whole and read tensor by tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vita_audio.checkpoint.configs import LanguageModelConfig
from vita_audio.checkpoint.files import NOT_LANGUAGE_MODEL, language_model_shapes
from vita_audio.checkpoint.weight_files import Shapes, compare, open_folder, read_text
from vita_audio.contract.errors import CheckpointError
from vita_audio.text.vocabulary import Vocabulary


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


def open_released(folder: Path) -> ReleasedCheckpoint:
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
