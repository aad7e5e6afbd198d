"""Speech that goes on: its complete blocks are not run again, and its tokens are those of the whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from vita_audio.checkpoint.configs import SpeechTokenizerConfig
from vita_audio.contract.errors import EngineError
from vita_audio.engines.interface import Floats
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.speech_blocks import Block, BlockRun
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.speech_features import BLOCK_TOKENS, final_tokens, speech_tokens

CONFIG = SpeechTokenizerConfig(
    d_model=32, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=16, quantize_position=2,
    quantize_vocab_size=64, quantize_causal_block_size=20,
)  # fmt: skip
RUN_FRAMES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("engine")
    export_speech_tokenizer(SpeechTokenizer(CONFIG), made)
    return made


class Counted(OnnxSpeechTokenizer):
    """Notes which frames were run."""

    def __init__(self, folder: Path, **options: int) -> None:
        super().__init__(folder, **options)
        self.runs: list[tuple[int, int]] = []

    def _run(self, due: Sequence[BlockRun[Floats]]) -> list[Block[Floats]]:
        self.runs += [(block.start, block.start + block.frames) for block in due]
        return super()._run(due)


def noise(seed: int, frames: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((CONFIG.num_mel_bins, frames), np.float32)


def test_only_what_is_new_is_run(folder: Path) -> None:
    engine, features = Counted(folder), noise(0, 200)
    for frames in (24, 48, 96, 176):
        engine.tokens(features[:, :frames], frames)
    assert engine.runs == [(0, 24), (0, 40), (40, 48), (40, 80), (80, 96), (80, 120), (120, 160), (160, 176)]
    engine.runs.clear()
    engine.tokens(np.concatenate([features[:, :80], noise(1, 40)], axis=1), 120)
    assert engine.runs == [(80, 120)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_tokens_of_speech_that_goes_on_are_those_of_the_whole_clip(folder: Path, data: st.DataObject) -> None:
    """Clips that grow, change in the middle and take turns, in a cache that holds a few blocks only."""
    state = 4 * 2 * CONFIG.layers * (RUN_FRAMES // 2) * CONFIG.d_model
    engine = OnnxSpeechTokenizer(folder, kept_bytes=data.draw(st.sampled_from([0, state, 5 * state, 100 * state])))
    clips = [noise(seed, 240) for seed in range(3)]
    for _ in range(data.draw(st.integers(1, 6))):
        clip = clips[data.draw(st.integers(0, 2))]
        tokens = data.draw(st.integers(1, 30))
        valid = data.draw(st.integers(8 * tokens - 7, 8 * tokens))
        if data.draw(st.booleans()):
            clip[:, data.draw(st.integers(0, 239)) :] += 0.5
        got = engine.tokens(clip[:, : 8 * tokens], valid)
        assert np.array_equal(got, OnnxSpeechTokenizer(folder).tokens(clip[:, : 8 * tokens], valid))
        assert len(got) == tokens


def test_pieces_together_are_pieces_one_by_one_and_equal_blocks_run_once(folder: Path) -> None:
    engine, other = Counted(folder), noise(5, 104)
    silence, ends = np.zeros((CONFIG.num_mel_bins, 120), np.float32), other[:, :64]
    pieces = [(silence, 120), (other, 99), (silence[:, :80], 80), (ends, 62), (silence, 117)]
    engine._most_pieces = 5
    for got, piece in zip(engine.tokens_of(pieces), pieces, strict=True):
        assert np.array_equal(got, OnnxSpeechTokenizer(folder).tokens(*piece))
    # Two first blocks; `ends` and the last silence end within a block.
    assert sorted(engine.runs) == [(0, 40), (0, 40), (40, 64), (40, 80), (40, 80), (80, 104), (80, 120), (80, 120)]
    assert engine.tokens_of([]) == []


def test_a_graph_of_an_earlier_version_is_refused(folder: Path, tmp_path: Path) -> None:
    graph = onnx.load(folder / "speech_tokenizer.onnx")
    properties = [entry for entry in graph.metadata_props if entry.key != "block_positions"]
    del graph.metadata_props[:]
    graph.metadata_props.extend(properties)
    onnx.save(graph, tmp_path / "speech_tokenizer.onnx")
    with pytest.raises(EngineError, match=r"earlier version.*rebuild the engines"):
        OnnxSpeechTokenizer(tmp_path)


@given(tokens=st.integers(0, 1000), more=st.integers(0, 500))
def test_final_tokens_are_whole_blocks_of_a_piece(tokens: int, more: int) -> None:
    final = final_tokens(tokens)
    assert final <= tokens < final + BLOCK_TOKENS + 1
    assert final_tokens(tokens + more) >= final
    assert final % 375 % BLOCK_TOKENS == 0


def test_speech_at_the_real_block_size_is_final_once_its_block_is(tmp_path: Path) -> None:
    """4 s blocks: the tokens that `final_tokens` names stay as they are, as long as no louder sound comes."""
    torch.manual_seed(1)
    sizes = {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16}
    export_speech_tokenizer(SpeechTokenizer(SpeechTokenizerConfig(**sizes, quantize_position=2)), tmp_path)
    engine = OnnxSpeechTokenizer(tmp_path)
    speech = np.random.default_rng(0).normal(0, 0.1, 10 * 16_000).astype(np.float32)
    speech[100] = 0.9  # the loudest comes first
    whole = speech_tokens(engine, speech)
    for seconds in (1.0, 4.1, 7.9, 8.2, 9.99):
        part = speech_tokens(engine, speech[: int(seconds * 16_000)])
        final = final_tokens(len(part))
        assert np.array_equal(part[:final], whole[:final])
