"""Random weights of any size: what a file holds is what was drawn, little memory, and engines that serve."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors import safe_open
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.roofline import SIZES as MEASURED
from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.random_engines import main, write_random_engines
from build_engines.stages import run_build
from gpu_machines import CONTAINER
from vita_audio.checkpoint import tensor_file
from vita_audio.checkpoint.check import check_checkpoint
from vita_audio.checkpoint.file_records import file_sha256
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.random_weights.language_model import RandomLanguageModel
from vita_audio.checkpoint.random_weights.tokenizer import build_tokenizer
from vita_audio.checkpoint.sizes import HALF_B, RELEASED, TINY
from vita_audio.checkpoint.tensor_file import write_tensors
from vita_audio.contract.errors import EngineError
from vita_audio.contract.request import parse_request
from vita_audio.engines.gpu_machine import GpuMachine
from vita_audio.engines.manifest import check_manifest
from vita_audio.engines.registry import open_audio_decoder, open_language_model, open_speech_tokenizer
from vita_audio.engines.source import EngineSource
from vita_audio.engines.torch.weights import WEIGHTS_FILE, load_weights_file
from vita_audio.generation.request import GenerationRequest
from vita_audio.generation.scheduler import Scheduler
from vita_audio.text.chat_template import PromptBuilder
from vita_audio.text.tokenizer import TextTokenizer
from vita_audio.text.vocabulary import BASE, Vocabulary

CPU = torch.device("cpu")
GPU = GpuOptions(engine="torch_cuda", streams=4, head="audio")
#: Of the released proportions in kind: filler tokens, the released control tokens, bfloat16, streams that go on.
MODEL = replace(TINY, text_tokens=900, ends=False, dtype="bfloat16")


def random_build(out: Path) -> Build:
    return Build(Path("random"), out, "gpu", context_tokens=256, gpu=GPU)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "engines"
    write_random_engines(random_build(out), MODEL, seed=3, device=CPU, machine=CONTAINER)
    return out


def test_the_file_holds_what_was_drawn(engines: Path) -> None:
    manifest = check_manifest(engines, target="gpu", machine=CONTAINER)
    config = replace(TINY.language_model, vocab_size=manifest.sizes["language_model"]["vocab_size"])
    drawn = RandomLanguageModel(config, CPU, 3, torch.bfloat16, manifest.vocabulary, ends=False)
    with safe_open(engines / WEIGHTS_FILE, framework="pt") as file:
        assert set(file.keys()) == set(drawn)
        for key in reversed(list(drawn)):  # in any order
            assert file.get_tensor(key).dtype == torch.bfloat16
            assert torch.equal(file.get_tensor(key), drawn[key]), key


def test_as_a_build_of_the_checkpoint_of_the_same_weights(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same files, weights, sizes and record: a folder drawn directly is a built one."""
    monkeypatch.setattr("build_engines.pipeline.find_machine", lambda: CONTAINER)
    write_random_checkpoint(tmp_path / "checkpoint", MODEL, seed=3)
    build = Build(tmp_path / "checkpoint", tmp_path / "built", "gpu", context_tokens=256, gpu=GPU)
    run_build(build)
    random, built = (check_manifest(out, target="gpu", machine=CONTAINER) for out in (engines, build.out))
    assert set(random.files) == set(built.files)
    for field in ("sizes", "vocabulary", "limits", "gpu", "versions"):
        assert getattr(random, field) == getattr(built, field), field
    for name in random.files:
        if name.endswith(".safetensors"):
            ours, theirs = (load_weights_file(out / name) for out in (engines, build.out))
            assert ours.keys() == theirs.keys()
            # The vocoder goes through the checkpoint with its weight norm split.
            assert all(torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-7) for key in ours), name


def test_streams_mix_text_and_audio_and_go_on(engines: Path) -> None:
    manifest = check_manifest(engines, target="gpu", machine=CONTAINER)
    source = EngineSource(engines, manifest, device="cpu")
    tokenizer, vocabulary = TextTokenizer(engines / "tokenizer.json"), manifest.vocabulary
    scheduler = Scheduler(open_language_model(source, 3), vocabulary.end_tokens)
    streams = []
    for seed, mode in enumerate(("boost", "turbo", "vanilla")):
        inputs = {"TEXT": "Where?", "MODE": mode, "SEED": seed, "TEMPERATURE": 1.0, "TOP_K": 50, "MAX_TOKENS": 100}
        request = GenerationRequest(
            PromptBuilder(tokenizer).build("chat", "Where?"), parse_request(inputs, manifest.limits).settings
        )
        streams.append(scheduler.submit(mode, request))
    while not scheduler.idle:
        scheduler.step()
    answers = [stream.tokens[stream.prompt_tokens :] for stream in streams]
    assert [len(answer) for answer in answers] == [100, 100, 100]  # to the limit
    for answer in answers:
        assert len(set(answer)) > 40
        assert sum(vocabulary.audio_code(token) is not None for token in answer) >= 20
        assert sum(map(vocabulary.is_text, answer)) >= 3


def test_audio_networks_open(engines: Path) -> None:
    manifest = check_manifest(engines, target="gpu", machine=CONTAINER)
    source = EngineSource(engines, manifest, device="cpu")
    flow, vocoder = open_audio_decoder(source)
    assert (flow.vocab_size, flow.mel_channels) == (256, vocoder.mel_channels)
    assert open_speech_tokenizer(source).num_mel_bins == TINY.speech_tokenizer.num_mel_bins


def test_a_large_model_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counting draw: when a large tensor is asked for, the one before it is gone; buffers do not grow with them."""
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", 1 << 12)
    alive: list[weakref.ref[Tensor]] = []
    buffers = 0
    empty = torch.empty

    def counted(*args: object, **options: object) -> Tensor:
        nonlocal buffers
        buffers += 1
        return empty(*args, **options)  # type: ignore[call-overload]

    class Counting(RandomLanguageModel):
        def __getitem__(self, key: str) -> Tensor:
            assert all(ref() is None for ref in alive), key
            tensor = super().__getitem__(key)
            alive.append(weakref.ref(tensor))
            return tensor

    config = replace(TINY.language_model, vocab_size=4096)
    tensors = Counting(config, CPU, dtype=torch.bfloat16)
    monkeypatch.setattr(tensor_file.torch, "empty", counted)
    record = write_tensors(tmp_path / "weights", tensors.outline, tensors.items())
    assert buffers == tensor_file._PIECES
    assert record.sha256 == file_sha256(tmp_path / "weights")
    assert record.bytes == (tmp_path / "weights").stat().st_size > 2 << 20


def test_writing_faults_surface(tmp_path: Path) -> None:
    a, b = torch.zeros(2, 3), torch.arange(4)
    outline = {"a": ((2, 3), torch.float32), "b": ((4,), torch.float32)}
    with pytest.raises(ValueError, match=r"b: .*int64 is not the next"):
        write_tensors(tmp_path / "x", outline, [("a", a), ("b", b)])
    with pytest.raises(ValueError, match="b never written"):
        write_tensors(tmp_path / "x", outline, [("a", a)])
    with pytest.raises(OSError, match="No space left"):
        write_tensors(Path("/dev/full"), outline, [("a", a), ("b", b.float())])


def test_empty_and_odd_tensors(tmp_path: Path) -> None:
    tensors = {"none": torch.zeros(0, 3), "one": torch.tensor(5.0), "turned": torch.arange(6.0).reshape(2, 3).T}
    outline = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    record = write_tensors(tmp_path / "x", outline, tensors.items())
    assert record.sha256 == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    read = load_weights_file(tmp_path / "x")
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_tokenizer(RELEASED.merges, RELEASED.audio_codes, 0, text_tokens=RELEASED.text_tokens).save(str(path))
    return path


def test_the_released_vocabulary(released: Path) -> None:
    assert Vocabulary.from_tokenizer(released) == BASE
    tokenizer = TextTokenizer(released)
    text = "What is the weather like in 2031?"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < 256 + RELEASED.merges  # fillers only come out
    assert tokenizer.decode([100_000, 151_642]) == " 100000 151642"


def test_sizes_are_those_that_benchmarks_predict() -> None:
    assert RELEASED.for_tokens(BASE.tokens).language_model == MEASURED["7b"].config
    assert HALF_B.for_tokens(BASE.tokens).language_model == MEASURED["0.5b"].config


def test_tied_head_is_as_calm_as_an_untied_one() -> None:
    config = replace(HALF_B.language_model, vocab_size=2000, hidden_size=256, num_attention_heads=4)
    tied = RandomLanguageModel(config, CPU)
    assert "lm_head.weight" not in tied
    hidden = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    assert float((hidden @ tied["model.embed_tokens.weight"].T).std()) == pytest.approx(4.0, rel=0.05)


def test_checkpoint_of_a_large_size_in_kind(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "random", MODEL, seed=1)
    found = check_checkpoint(tmp_path / "random")
    assert found.vocabulary.text_tokens == 900
    with safe_open(tmp_path / "random" / "language_model" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_refusals_leave_nothing_behind(engines: Path, tmp_path: Path) -> None:
    nothing = GpuMachine((), "none", "none", "none")
    with pytest.raises(EngineError, match="not empty"):
        write_random_engines(random_build(engines), MODEL, device=CPU, machine=CONTAINER)
    with pytest.raises(EngineError, match="no GPU"):
        write_random_engines(random_build(tmp_path / "out"), MODEL, device=torch.device("cuda:0"), machine=nothing)
    build = replace(random_build(tmp_path / "out"), gpu=replace(GPU, step_tokens=10))
    with pytest.raises(EngineError, match=r"--step-tokens: 10 is not valid: at least K \+ 1 = 11"):
        write_random_engines(build, MODEL, device=CPU, machine=CONTAINER)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    options = ["--size", "tiny", "--device", "cpu", "--context-tokens", "128", "--streams", "2", "--head", "audio"]
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "a"), *options])
    assert result.exit_code == 0, result.output
    assert WEIGHTS_FILE in result.output
    manifest = check_manifest(tmp_path / "a", target="gpu", device="cpu")
    assert manifest.limits.context_tokens == 128
    assert manifest.gpu is not None
    assert manifest.gpu.head_first_id == manifest.vocabulary.text_tokens // 8 * 8
    again = CliRunner().invoke(app, ["--out", str(tmp_path / "a"), *options])
    assert again.exit_code == 1
    assert "not empty" in again.output
