"""Weights of the torch_cuda engines as the builder stores them: safetensors, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vita_audio.contract.errors import EngineError

AUDIO_FOLDER = "audio"
WEIGHTS_FILE = "language_model/weights.safetensors"
SPEECH_TOKENIZER_FILE = f"{AUDIO_FOLDER}/speech_tokenizer.safetensors"
SENSEVOICE_FILE = f"{AUDIO_FOLDER}/sensevoice.safetensors"
FLOW_FILE = f"{AUDIO_FOLDER}/flow.safetensors"
VOCODER_FILE = f"{AUDIO_FOLDER}/vocoder.safetensors"


class StoredTensors(Mapping[str, Tensor]):
    """A safetensors file as a mapping that reads a tensor when it is asked for.

    Raises:
        EngineError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise EngineError(_unreadable(path, error)) from error
        self._keys = dict.fromkeys(self._file.keys())

    def __getitem__(self, key: str) -> Tensor:
        return self._file.get_tensor(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises EngineError when it is missing, truncated or not safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise EngineError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: not readable weights ({' '.join(str(error).split())}); build the engines again"
