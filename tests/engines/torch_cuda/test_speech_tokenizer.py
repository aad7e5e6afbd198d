"""The speech tokenizer of torch_cuda on the CPU: everything but the capture itself, against the reference."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_audio.checkpoint.configs import SpeechTokenizerConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import BatchedSpeechTokenizerEngine, Floats, Ints
from vita_audio.engines.speech_blocks import Block, BlockRun
from vita_audio.engines.torch.audio import TorchSpeechTokenizer
from vita_audio.engines.torch_cuda.speech_tokenizer import Place, TorchCudaSpeechTokenizer, state_bytes
from vita_audio.models.speech_tokenizer import SpeechTokenizer

CPU = torch.device("cpu")
#: 40 frames a block, six blocks a piece.
CONFIG = SpeechTokenizerConfig(32, 2, 32, 16, 120, 4, 2, 48, 20)
#: Attention by 6 positions, tokens of 4: two blocks of attention in one of ours, and a last one that is cut off.
UNEVEN = SpeechTokenizerConfig(32, 2, 32, 16, 100, 4, 2, 48, 6)


@cache
def weights(config: SpeechTokenizerConfig) -> dict[str, torch.Tensor]:
    """Random ones; codes are states of noise, so that all of them are met."""
    torch.manual_seed(0)
    model = SpeechTokenizer(config)
    frames = 2 * config.max_source_positions
    with torch.no_grad():
        states = model.encode(torch.randn(2, config.num_mel_bins, frames), torch.tensor([frames, frames]))
        model.codebook.weight.copy_(states.flatten(0, 1)[: config.quantize_vocab_size])
    return model.state_dict()


class Counted(TorchCudaSpeechTokenizer):
    """Notes which frames were run."""

    def __init__(self, config: SpeechTokenizerConfig = CONFIG, *options: object, **more: object) -> None:
        super().__init__(config, weights(config), CPU, *options, **more)  # type: ignore[arg-type]
        self.runs: list[list[tuple[int, int]]] = []

    def _run(self, due: Sequence[BlockRun[Place]]) -> list[Block[Place]]:
        self.runs.append([(block.start, block.start + block.frames) for block in due])
        return super()._run(due)


def noise(seed: int, frames: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((CONFIG.num_mel_bins, frames), np.float32)


def expected(features: Floats, valid_frames: int, config: SpeechTokenizerConfig = CONFIG) -> Ints:
    return TorchSpeechTokenizer(config, weights(config)).tokens(features, valid_frames)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("config", [CONFIG, UNEVEN], ids=["even", "uneven"])
def test_tokens_are_the_reference_s(config: SpeechTokenizerConfig, prepared: bool) -> None:
    engine = Counted(config, most_pieces=4)
    if prepared:
        assert engine.prepare() == 3 * engine.sizes.most_blocks
    most = engine.sizes.max_frames
    sizes = [(2, 1), (8, 8), (46, 41), (most, most - 3), (80, 80)]
    pieces = [(noise(i, frames), valid) for i, (frames, valid) in enumerate(sizes)]
    assert isinstance(engine, BatchedSpeechTokenizerEngine)
    for got, piece in zip(engine.tokens_of(pieces), pieces, strict=True):
        assert got.tolist() == expected(*piece, config).tolist()
    assert len(set(got.tolist())) > 4


def test_only_what_is_new_is_run_and_the_oldest_give_their_places_up() -> None:
    engine, clip = Counted(), noise(0, 240)
    for frames in (24, 48, 96):
        engine.tokens(clip[:, :frames], frames)
    assert engine.runs == [[(0, 24)], [(0, 40)], [(40, 48)], [(40, 80)], [(80, 96)]]
    for seed in (1, 2, 3):
        engine.tokens(noise(seed, 240), 240)
    engine.runs.clear()
    assert engine.tokens(clip, 240).tolist() == expected(clip, 240).tolist()
    assert len(engine.runs) == 6, "twelve places, and eighteen blocks since"
    engine.runs.clear()
    engine.tokens(clip, 240)
    assert engine.runs == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(0, 7)), min_size=1, max_size=6))
def test_speech_that_goes_on_in_turns(turns: list[tuple[int, int, int]]) -> None:
    """In batches, with places for one clip more than run."""
    engine, clips = Counted(most_pieces=2), [noise(seed, 240) for seed in range(3)]
    pieces = [(clips[clip][:, : 8 * tokens], 8 * tokens - less) for clip, tokens, less in turns]
    for got, piece in zip(engine.tokens_of(pieces), pieces, strict=True):
        assert got.tolist() == expected(*piece).tolist()
    assert len(engine._free) + len(engine._blocks) == 12, "no place is lost"


def test_a_failed_call_gives_its_places_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Counted()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_program", lambda inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.tokens(noise(0, 80), 80)
    assert len(engine._free) == 12
    assert engine.tokens(noise(0, 80), 80).tolist() == expected(noise(0, 80), 80).tolist()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_close(precision: str) -> None:
    """Codes of a random network are near each other, so some differ; states are half as large."""
    engine = Counted(CONFIG, precision)
    clip = noise(0, 240)
    same = engine.tokens(clip, 240) == expected(clip, 240)
    assert same.mean() > 0.7
    place = engine._take()
    assert 12 * place.nbytes == state_bytes(CONFIG, precision) == state_bytes(CONFIG) // 2


def test_bad_input_is_refused() -> None:
    engine = Counted()
    for features, valid, words in ((noise(0, 7), 7, "even"), (noise(0, 242), 8, "2..240"), (noise(0, 8), 9, "1..8")):
        with pytest.raises(EngineError, match=words):
            engine.tokens_of([(noise(0, 8), 8), (features, valid)])
    assert engine.runs == []
    with pytest.raises(EngineError, match="precision: 'int8' is not valid"):
        Counted(CONFIG, "int8")
