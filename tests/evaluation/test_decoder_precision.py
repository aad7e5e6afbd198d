"""The decoder's number formats side by side: what is decoded is what a stream sounds like, in each format."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from evaluation.decoder_precision import decode
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.torch.audio import TorchFlow, TorchVocoder


def test_each_format_decodes_the_codes_with_the_noise_of_their_case(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tiny"
    write_random_checkpoint(checkpoint, TINY, seed=0)
    torch.manual_seed(0)
    cases: Any = [SimpleNamespace(seed=4), SimpleNamespace(seed=5)]
    codes = [list(range(12)), list(range(20, 29))]
    folder = checkpoint / "audio_decoder"
    reference = StreamingDecoder(TorchFlow(*load_flow(folder)), TorchVocoder(*load_vocoder(folder)))
    made = {name: decode(checkpoint, name, codes, cases) for name in ("float32", "bf16")}
    for case, own, exact, half in zip(cases, codes, made["float32"], made["bf16"], strict=True):
        state = reference.init(case.seed)
        expected = np.concatenate([reference.push(state, own), reference.finish(state)])
        assert np.abs(expected.astype(int) - exact.astype(int)).max() <= 2
        assert half.shape == exact.shape
        assert not np.array_equal(half, exact)
