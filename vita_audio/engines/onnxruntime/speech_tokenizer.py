"""The speech tokenizer on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats
from vita_audio.engines.onnxruntime.session import open_graph
from vita_audio.engines.speech_blocks import Block, BlockRun, BlockSizes, BlockwiseSpeechTokenizer

#: Of keys and values that are kept: 40 s of speech at the released size, an hour at that of the small checkpoint.
KEPT_BYTES = 256 * 2**20
_SIZES = ("num_mel_bins", "max_frames", "frames_per_token", "block_positions", "context_frames")


class OnnxSpeechTokenizer(BlockwiseSpeechTokenizer[Floats]):
    """`SpeechTokenizerEngine` over `speech_tokenizer.onnx`. A block leaves [layers, 2, positions, width].

    Args:
        folder: holds the graph.
        threads: of ONNX Runtime.
        kept_bytes: of blocks that are kept for speech that goes on.

    Raises:
        EngineError: the graph is missing or was not made by this version of `build_engines`.
    """

    def __init__(self, folder: str | Path, threads: int = 1, kept_bytes: int = KEPT_BYTES) -> None:
        path = Path(folder) / "speech_tokenizer.onnx"
        self._session, metadata = open_graph(path, threads, any_length=True)
        try:
            sizes = BlockSizes(*(int(metadata[name]) for name in _SIZES))
            self._layers, self._width = int(metadata["layers"]), int(metadata["width"])
        except KeyError as error:
            raise EngineError(f"{path}: was made by an earlier version (no {error}); rebuild the engines") from None
        super().__init__(sizes, kept_bytes)

    def _run(self, due: Sequence[BlockRun[Floats]]) -> list[Block[Floats]]:
        return [self._run_one(block) for block in due]

    def _run_one(self, block: BlockRun[Floats]) -> Block[Floats]:
        inputs = {
            "features": block.features[None],
            "valid_frames": np.array([block.valid_frames], np.int64),
            "context_rows": np.array([block.context // 2], np.int64),
        }
        past = np.zeros((self._layers, 2, 0, self._width), np.float32)
        if block.past:
            past = np.concatenate(block.past, axis=2)
        names = [f"{name}_{layer}" for layer in range(self._layers) for name in ("key", "value")]
        rows = [one[None] for layer in past for one in layer]
        inputs |= {f"past_{name}": before for name, before in zip(names, rows, strict=True)}
        ids, *state = self._session.run(["ids", *names], inputs)
        return Block(ids[0], np.concatenate(state).reshape(self._layers, 2, -1, self._width))
