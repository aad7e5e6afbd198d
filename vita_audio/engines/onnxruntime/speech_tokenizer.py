"""The speech tokenizer on ONNX Runtime: block by block, and a block that was run before is not run again.

No position attends to a later block (docs/audio.md 1), so the tokens of a complete block are those of any longer clip
with the same features before its end. Speech is sent again while it goes on; only its last blocks are new.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats, Ints
from vita_audio.engines.limits import check_features
from vita_audio.engines.onnxruntime.session import open_graph
from vita_audio.engines.recently_used import RecentlyUsed

#: Of keys and values that are kept: 40 s of speech at the released size, an hour at that of the small checkpoint.
KEPT_BYTES = 256 * 2**20
_SIZES = (
    "num_mel_bins", "max_frames", "frames_per_token", "context_frames", "block_positions", "layers", "width"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Block:
    """What a complete block leaves: its ids, and keys and values [layers, 2, positions, width]."""

    ids: Ints
    state: Floats


class OnnxSpeechTokenizer:
    """`SpeechTokenizerEngine` over `speech_tokenizer.onnx`.

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
            sizes = {name: int(metadata[name]) for name in _SIZES}
        except KeyError as error:
            raise EngineError(f"{path}: was made by an earlier version (no {error}); rebuild the engines") from None
        self.num_mel_bins, self.max_frames = sizes["num_mel_bins"], sizes["max_frames"]
        self._frames_per_token, self._context_frames = sizes["frames_per_token"], sizes["context_frames"]
        self._layers, self._width = sizes["layers"], sizes["width"]
        # Whole blocks, and whole tokens: two frames a position.
        self._run_frames = 2 * math.lcm(sizes["block_positions"], self._frames_per_token // 2)
        # By the features up to their end.
        self._blocks: RecentlyUsed[_Block] = RecentlyUsed(kept_bytes)

    def tokens(self, features: Floats, valid_frames: int) -> Ints:
        check_features(features, valid_frames, self.num_mel_bins, self.max_frames)
        frames, key = features.shape[1], hashlib.blake2b(digest_size=16)
        ids: list[Ints] = []
        past = np.zeros((self._layers, 2, 0, self._width), np.float32)
        for start in range(0, valid_frames, self._run_frames):
            stop = min(start + self._run_frames, frames)
            complete = start + self._run_frames <= valid_frames
            key.update(np.ascontiguousarray(features[:, start:stop]).tobytes())
            block = self._blocks.get(key.digest()) if complete else None
            if block is None:
                block = self._run(features, start, stop, min(valid_frames, stop) - start, past)
                if complete:
                    self._blocks.put(key.digest(), block, block.state.nbytes)
            ids.append(block.ids)
            if stop < valid_frames:
                past = np.concatenate([past, block.state], axis=2)
        return np.concatenate(ids)[: -(-valid_frames // self._frames_per_token)]

    def _run(self, features: Floats, start: int, stop: int, valid_frames: int, past: Floats) -> _Block:
        """Frames [start, stop), `valid_frames` of them speech, after positions with keys and values `past`."""
        context = min(start, self._context_frames)  # what the convolutions see of the frames before
        inputs = {
            "features": features[None, :, start - context : stop],
            "valid_frames": np.array([valid_frames], np.int64),
            "context_rows": np.array([context // 2], np.int64),
        }
        names = [f"{name}_{layer}" for layer in range(self._layers) for name in ("key", "value")]
        rows = [one[None] for layer in past for one in layer]
        inputs |= {f"past_{name}": before for name, before in zip(names, rows, strict=True)}
        ids, *state = self._session.run(["ids", *names], inputs)
        return _Block(ids[0], np.concatenate(state).reshape(self._layers, 2, -1, self._width))
