"""The speech tokenizer of the GPU: block by block, a CUDA graph for each block of a piece and number of pieces."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vita_audio.checkpoint.configs import SpeechTokenizerConfig
from vita_audio.engines.audio_precision import BF16, FLOAT32, FP16, SPEECH_PRECISIONS, check_precision
from vita_audio.engines.preparing import prepare_batches
from vita_audio.engines.speech_blocks import Block, BlockRun, BlockSizes, BlockwiseSpeechTokenizer
from vita_audio.engines.torch_cuda.device_arrays import DeviceArrays
from vita_audio.engines.torch_cuda.kernels.audio_check import audio_operations
from vita_audio.engines.torch_cuda.speech_encoder import BlockEncoder
from vita_audio.models.speech_tokenizer import SpeechTokenizer

#: Pieces of 30 s that run together: in float32 one block keeps an H100 busy (126 GFLOP at the released size), and each
#: more takes places for a whole piece.
MOST_PIECES = 2
_TYPES = {FP16: torch.float16, BF16: torch.bfloat16}


class Place:
    """A place of the encoder's state, free again when nothing refers to it any more."""

    def __init__(self, free: list[int], nbytes: int) -> None:
        self.number, self.nbytes = free.pop(), nbytes
        weakref.finalize(self, free.append, self.number)


class TorchCudaSpeechTokenizer(BlockwiseSpeechTokenizer[Place]):
    """`BatchedSpeechTokenizerEngine`. States stay on the device: there are places for `most_pieces` whole pieces, and
    what running pieces leave of them keeps blocks of speech that goes on.

    Args:
        config, tensors, device: as `TorchSpeechTokenizer`.
        precision: one of `SPEECH_PRECISIONS`.
        kernels_off: names of `kernels/names.py` that run as their reference.
        most_pieces: that run together.
    """

    def __init__(
        self,
        config: SpeechTokenizerConfig,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        precision: str = FLOAT32,
        kernels_off: frozenset[str] = frozenset(),
        most_pieces: int = MOST_PIECES,
    ) -> None:
        check_precision("precision", precision, SPEECH_PRECISIONS)
        sizes = block_sizes(config)
        places = most_pieces * sizes.most_blocks
        super().__init__(sizes, state_bytes(config, precision, most_pieces), most_pieces)
        model = SpeechTokenizer(config).eval()
        model.load_state_dict(tensors)
        model.to(device)
        dtype, operations = _TYPES.get(precision, torch.float32), audio_operations(device, kernels_off)
        with torch.no_grad():
            encoder = BlockEncoder(model, sizes, places, dtype, precision != FLOAT32, operations)
        self._place_bytes = encoder.state[:, 0].nbytes
        self._free = list(range(places, 0, -1))
        self._program = DeviceArrays(device).program(encoder)

    def prepare(self) -> int:
        """Capture every block of a piece for 1, 2, 4, ... pieces; how many graphs that are.

        Raises:
            NoMemory: the GPU has none for one piece. For more, where it has none, they run one by one.
        """

        def prepare(batch: int) -> None:
            for before in reversed(range(self.sizes.most_blocks)):
                self._program.prepare(self._inputs(batch, before))

        prepare_batches("speech tokenizer", self._most_pieces, prepare)
        return len(self._program)

    def _run(self, due: Sequence[BlockRun[Place]]) -> list[Block[Place]]:
        inputs, made = self._inputs(len(due), len(due[0].past)), [self._take() for _ in due]
        for row, (block, place) in enumerate(zip(due, made, strict=True)):
            inputs["features"][row, :, : block.features.shape[1]] = block.features
            inputs["valid_positions"][row] = (block.valid_frames + 1) // 2
            inputs["positions"][row] = block.frames // 2
            inputs["places"][row] = [one.number for one in (*block.past, place)]
        ids = self._program(inputs).get()
        return [Block(row, place) for row, place in zip(ids, made, strict=True)]

    def _inputs(self, batch: int, before: int) -> dict[str, np.ndarray]:
        """Zeros, for blocks that have `before` others before them."""
        frames = self.sizes.frames + (self.sizes.context_frames if before else 0)
        return {
            "features": np.zeros((batch, self.num_mel_bins, frames), np.float32),
            "valid_positions": np.zeros((batch, 1), np.int64),
            "positions": np.zeros((batch, 1), np.int64),
            "places": np.zeros((batch, before + 1), np.int64),
        }

    def _take(self) -> Place:
        while not self._free:  # pieces that run hold fewer than there are
            self._blocks.give_up()
        return Place(self._free, self._place_bytes)


def block_sizes(config: SpeechTokenizerConfig) -> BlockSizes:
    return BlockSizes(
        config.num_mel_bins,
        2 * config.max_source_positions,
        config.frames_per_token,
        config.quantize_causal_block_size,
    )


def state_bytes(config: SpeechTokenizerConfig, precision: str = FLOAT32, most_pieces: int = MOST_PIECES) -> int:
    """Device memory of the states of `most_pieces` whole pieces."""
    sizes = block_sizes(config)
    positions = most_pieces * sizes.most_blocks * sizes.frames // 2
    return positions * config.layers * 2 * config.d_model * _TYPES.get(precision, torch.float32).itemsize
