"""The random-weight checkpoint: released layout, the same bytes for the same seed, and streams that behave sanely."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.file_records import checkpoint_sha256
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.random_weights.__main__ import main, write_random_checkpoint
from vita_audio.checkpoint.random_weights.audio import CPU
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel
from vita_audio.checkpoint.random_weights.tokenizer import write_tokenizer
from vita_audio.checkpoint.sizes import SMALL, TINY, ModelSize
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import CheckpointError
from vita_audio.contract.limits import Limits
from vita_audio.contract.request import parse_request
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.speech_features import speech_pieces
from vita_audio.text.chat_template import PromptBuilder
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "random"
    write_random_checkpoint(folder, TINY, seed=0)
    return folder


def test_layout(checkpoint: Path) -> None:
    assert {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()} == {
        "language_model/config.json",
        "language_model/generation_config.json",
        "language_model/model.safetensors",
        "language_model/tokenizer.json",
        "language_model/tokenizer_config.json",
        "speech_tokenizer/config.json",
        "speech_tokenizer/preprocessor_config.json",
        "speech_tokenizer/model.safetensors",
        "audio_decoder/config.yaml",
        "audio_decoder/flow.pt",
        "audio_decoder/hift.pt",
    }
    config = json.loads((checkpoint / "language_model" / "config.json").read_text())
    assert (config["model_type"], config["num_nextn_predict_layers"]) == ("qwen2_mtp", 10)
    generation = json.loads((checkpoint / "language_model" / "generation_config.json").read_text())
    assert generation["mtp_inference_mode"] == [1, 10, 4, 10]


def test_its_parts_fit_each_other(checkpoint: Path) -> None:
    found = check_checkpoint(checkpoint)
    assert (found.flow, found.vocoder, found.speech_tokenizer) == (TINY.flow, TINY.vocoder, TINY.speech_tokenizer)
    assert found.vocabulary.audio_codes == 256
    assert found.language_model.vocab_size % 8 == 0
    assert 0 <= found.language_model.vocab_size - found.vocabulary.tokens < 8


def test_same_seed_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "same", TINY, seed=0)
    write_random_checkpoint(tmp_path / "other", TINY, seed=1)
    assert checkpoint_sha256(tmp_path / "same") == checkpoint_sha256(checkpoint)
    assert checkpoint_sha256(tmp_path / "other") != checkpoint_sha256(checkpoint)


def test_the_random_state_of_the_process_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    write_random_checkpoint(tmp_path / "random", TINY, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_is_overwritten(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="not empty"):
        write_random_checkpoint(checkpoint, TINY)


def test_the_served_size_is_deep_and_narrow() -> None:
    config = SMALL.language_model
    assert (config.backbone_layers, config.mctp_modules, config.hidden_size) == (24, 10, 160)
    assert SMALL.audio_codes == SMALL.speech_tokenizer.quantize_vocab_size == 2048


def test_streams_mix_text_and_audio_and_do_not_repeat_one_token(checkpoint: Path) -> None:
    config, tensors = load_language_model(checkpoint / "language_model")
    tokenizer = TextTokenizer(checkpoint / "language_model" / "tokenizer.json")
    vocabulary = tokenizer.vocabulary
    engine = TorchLanguageModel(
        config, tensors, slots=4, context=512, banned_ids=vocabulary.banned_ids(config.vocab_size)
    )
    limits = Limits(512, 256, 200, config.mctp_modules, (1, 10, 4, 10))
    scheduler = Scheduler(engine, vocabulary.end_tokens)
    streams = []
    for index, (text, mode, task) in enumerate(
        [
            ("Hello", "boost", "chat"),
            ("Hello", "turbo", "chat"),
            ("Where is it?", "vanilla", "chat"),
            ("a", "boost", "tts"),
        ]
    ):
        settings = parse_request({"TEXT": text, "MODE": mode, "TASK": task, "SEED": index}, limits).settings
        prompt = PromptBuilder(tokenizer).build(task, text)
        streams.append(scheduler.submit(str(index), GenerationRequest(prompt, settings)))
    while not scheduler.idle:
        scheduler.step()
    answers = [stream.tokens[stream.prompt_tokens :] for stream in streams]
    everything = [token for answer in answers for token in answer]
    audio = sum(vocabulary.audio_code(token) is not None for token in everything)
    text = sum(map(vocabulary.is_text, everything))
    assert min(map(len, answers)) >= 3
    assert audio > len(everything) / 5
    assert text > len(everything) / 5
    for answer in answers:
        assert len(set(answer)) > len(answer) / 3


@pytest.mark.parametrize("size", [TINY, SMALL])
def test_end_tokens_can_be_reached(size: ModelSize, tmp_path: Path) -> None:
    """Of hidden states in random directions, about 1 in 200 picks an end token: streams end, but not at once."""
    tokens = write_tokenizer(tmp_path, size.merges, size.audio_codes, seed=0)
    vocabulary = Vocabulary.from_tokenizer(tmp_path / "tokenizer.json")
    config = replace(size.language_model, vocab_size=tokens)
    head = RandomLanguageModel(config, CPU, vocabulary=vocabulary)["lm_head.weight"]
    hidden = torch.randn(10_000, config.hidden_size, generator=torch.Generator().manual_seed(0))
    picked = (hidden @ head.T).argmax(1)
    ends = sum(int((picked == token).sum()) for token in vocabulary.end_tokens)
    assert 1 / 500 < ends / len(hidden) < 1 / 100


def test_different_sounds_get_different_codes(checkpoint: Path) -> None:
    config, tensors = load_speech_tokenizer(checkpoint / "speech_tokenizer")
    model = SpeechTokenizer(config).eval()
    model.load_state_dict(tensors)
    seconds = torch.arange(4 * 16_000) / 16_000
    wave = (torch.sin(2 * torch.pi * (200 + 300 * torch.sin(2 * seconds)) * seconds) * torch.sin(5 * seconds)).numpy()
    (piece,) = speech_pieces(wave, config.num_mel_bins)
    with torch.inference_mode():
        codes = model(torch.from_numpy(piece.features)[None], torch.tensor([piece.valid_frames]))[0]
    assert len(set(codes.tolist())) > 20


def test_command_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    arguments = ["--out", str(tmp_path / "random"), "--size", "tiny", "--seed", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert check_checkpoint(tmp_path / "random").flow == TINY.flow
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "not empty" in again.output
