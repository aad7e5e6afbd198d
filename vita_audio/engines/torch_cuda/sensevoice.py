"""SenseVoice on the GPU: a CUDA graph for each of a few lengths, to which clips are padded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import SenseVoiceConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.audio_precision import BF16, FLOAT32, FP16, SPEECH_PRECISIONS, check_precision
from vita_audio.engines.interface import Floats
from vita_audio.engines.limits import check_stacked_features
from vita_audio.engines.preparing import REMEDY, NoMemory
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays
from vita_audio.engines.torch_cuda.kernels.audio_check import audio_operations
from vita_audio.engines.torch_cuda.sensevoice_encoder import ClipEncoder
from vita_audio.models.sensevoice import QUERY_ROWS, SenseVoice

#: Embeddings of a clip that graphs are captured for, the first that holds a clip is taken: powers of two and half way
#: between them. Below 64 rows a GPU reads weights for as long as it computes. The last is 122 s, more than a request
#: may have.
SLOT_COUNTS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_TYPES = {FP16: torch.float16, BF16: torch.bfloat16}


def prepared_slots(most: int) -> tuple[int, ...]:
    """Of `SLOT_COUNTS`, those that clips of up to `most` embeddings take."""
    return tuple(count for i, count in enumerate(SLOT_COUNTS) if not i or SLOT_COUNTS[i - 1] < most)


class TorchCudaSenseVoice:
    """`SpeechEncoderEngine`.

    Args:
        config: sizes.
        tensors: as the builder stores them: of `SenseVoice`, and `feature_shift` and `feature_scale`.
        device: where it runs; nothing is captured on a CPU.
        precision: one of `SPEECH_PRECISIONS`.
        kernels_off: names of `kernels/names.py` that run as their reference.
    """

    def __init__(
        self,
        config: SenseVoiceConfig,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        precision: str = FLOAT32,
        kernels_off: frozenset[str] = frozenset(),
    ) -> None:
        check_precision("precision", precision, SPEECH_PRECISIONS)
        self.embedding_size = config.embedding_size
        weights = dict(tensors)
        self.feature_shift, self.feature_scale = (
            weights.pop(name).numpy() for name in ("feature_shift", "feature_scale")
        )
        model = SenseVoice(config).eval()
        model.load_state_dict(weights)
        model.to(device)
        dtype, operations = _TYPES.get(precision, torch.float32), audio_operations(device, kernels_off)
        with torch.no_grad():
            encoder = ClipEncoder(model, SLOT_COUNTS[-1], dtype, precision != FLOAT32, operations)
        self._program = DeviceArrays(device).program(encoder)
        self._counts: tuple[int, ...] = ()

    def prepare(self, most_slots: int) -> int:
        """Capture the lengths that clips of up to `most_slots` embeddings take, the longest first, so that its memory
        serves the rest; how many there are. A longer clip runs kernel by kernel.

        Raises:
            NoMemory: the GPU has none for them.
        """
        counts = prepared_slots(most_slots)
        for count in reversed(counts):
            try:
                self._program.prepare(self._inputs(count))
            except NoMemory as error:
                raise NoMemory(f"SenseVoice: {error}; {REMEDY}") from error
        self._counts = counts
        return len(counts)

    def embeddings(self, features: Floats) -> Floats:
        check_stacked_features(features, len(self.feature_shift))
        rows, most = len(features), SLOT_COUNTS[-1] - len(QUERY_ROWS)
        if rows > most:
            raise EngineError(f"features have {rows} rows, must be at most {most}; cut the speech first")
        slots = rows + len(QUERY_ROWS)
        inputs = self._inputs(next((count for count in self._counts if count >= slots), slots))
        inputs["features"][0, :rows], inputs["rows"][0] = features, rows
        return self._program(inputs).get()[0, :slots]

    def _inputs(self, slots: int) -> dict[str, np.ndarray]:
        """Zeros, for a clip padded to so many embeddings."""
        rows = slots - len(QUERY_ROWS)
        return {
            "features": np.zeros((1, rows, len(self.feature_shift)), np.float32),
            "rows": np.zeros((1, 1), np.int64),
        }
