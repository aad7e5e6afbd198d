"""Engines are opened as their manifest says: CPU, TensorRT-LLM (its reference executor), torch_cuda (on the CPU)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from build_engines.options import GpuOptions
from build_engines.pipeline import Build
from build_engines.stages import run_build
from generation_doubles import generate
from gpu_machines import CONTAINER, without_onnx
from language_models import ENGINES, request
from server.checks import check_engines
from server.errors import CannotStart
from server.options import ROOT
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.language_model import load_language_model
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.interface import FlowEngine, LanguageModelEngine, SolvingFlowEngine
from vita_audio.engines.manifest import Manifest, load_manifest
from vita_audio.engines.onnxruntime.audio import OnnxFlow
from vita_audio.engines.onnxruntime.language_model import OnnxLanguageModel
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.registry import (
    FAMILIES,
    check_slots,
    open_audio_decoder,
    open_language_model,
    open_speech_tokenizer,
)
from vita_audio.engines.source import EngineSource
from vita_audio.engines.tensorrt_llm import session
from vita_audio.engines.tensorrt_llm.language_model import TensorRtLlmLanguageModel
from vita_audio.engines.tensorrt_llm.layout import Layout
from vita_audio.engines.tensorrt_llm.reference_executor import ReferenceExecutor
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.engines.torch.language_model import TorchLanguageModel
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow
from vita_audio.engines.torch_cuda.engine import TorchCudaLanguageModel
from vita_audio.engines.torch_cuda.factory import device_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "seed"
    write_random_checkpoint(folder, TINY, seed=0)
    return folder


@pytest.fixture(scope="module")
def source(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSource:
    """torch_cuda engines as the builder makes them, to be opened on the CPU."""
    out = tmp_path_factory.mktemp("engines") / "gpu"
    options = GpuOptions(engine="torch_cuda", streams=2, step_tokens=64, head="full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("build_engines.pipeline.find_machine", lambda: CONTAINER)
        run_build(Build(checkpoint, out, "gpu", context_tokens=128, gpu=options))
    manifest = load_manifest(out)
    return EngineSource(out, manifest, device="cpu")


def changed(source: EngineSource, **fields: Any) -> EngineSource:
    """Fields of the GPU record changed; each stage by the family that the builder would use."""
    assert source.gpu is not None
    return replace(source, manifest=replace(source.manifest, gpu=replace(source.gpu, **fields), engines={}))


def with_engines(source: EngineSource, **families: Any) -> EngineSource:
    return replace(source, manifest=replace(source.manifest, engines={**source.manifest.engines, **families}))


def tokens(engine: LanguageModelEngine) -> list[list[int]]:
    """A greedy and a sampling stream, together."""
    requests = [
        request(list(range(20, 50)), (1, 10, 4, 10), 40),
        request([5, 6], (1, 4, 3, 8), 40, temperature=0.9, top_k=5, seed=3),
    ]
    return generate(engine, requests, 16)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, source: EngineSource) -> list[list[int]]:
    """What the reference makes of the weights as they are stored, in bfloat16."""
    config, tensors = load_language_model(checkpoint / "language_model")
    rounded = {key: value.bfloat16().float() for key, value in tensors.items()}
    assert source.gpu is not None
    return tokens(TorchLanguageModel(config, rounded, 2, 128, source.gpu.banned_ids))


def test_torch_cuda(source: EngineSource, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    prepare = TorchCudaLanguageModel.prepare

    def note(engine: TorchCudaLanguageModel, prefill_chunk: int) -> int:
        prepared.append(prefill_chunk)
        return prepare(engine, prefill_chunk)

    monkeypatch.setattr(TorchCudaLanguageModel, "prepare", note)
    engine = open_language_model(source, slots=2)
    assert isinstance(engine, TorchCudaLanguageModel)
    assert prepared == [source.prefill_chunk] == [64]  # step_tokens bounds it
    assert tokens(engine) == expected
    assert isinstance(open_language_model(source, slots=3), TorchCudaLanguageModel)  # memory decides, not the build


def test_tensorrt_llm(
    source: EngineSource, checkpoint: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference executor, in place of the engines, gets the layout of the manifest and makes the same tokens."""
    _, tensors = load_language_model(checkpoint / "language_model")
    rounded = {key: value.bfloat16().float() for key, value in tensors.items()}
    gpu = source.gpu
    assert gpu is not None
    asked: list[tuple[Path, Layout, int]] = []

    def executor(folder: Path, layout: Layout, bytes_beside: int) -> ReferenceExecutor:
        asked.append((folder, layout, bytes_beside))
        return ReferenceExecutor(layout, rounded, gpu.banned_ids)

    monkeypatch.setattr(session, "SessionExecutor", executor)
    served = changed(source, engine="tensorrt_llm", candidates=20)
    engine = open_language_model(served, slots=2)
    assert isinstance(engine, TensorRtLlmLanguageModel)
    ((folder, layout, bytes_beside),) = asked
    assert bytes_beside == gpu.bytes_beside_slots > 0
    assert folder == source.folder / "language_model"
    assert (layout.slots, layout.context, layout.max_num_tokens) == (2, 128, 64)
    assert (layout.candidates, layout.head_first_id) == (20, 0)
    assert tokens(engine) == expected


def test_the_audio_only_head_of_the_build_is_served(source: EngineSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that the MCTP modules may emit, and ids that never come out, are those of the manifest, in both families."""
    layouts: list[Layout] = []

    def executor(folder: Path, layout: Layout, bytes_beside: int) -> None:
        layouts.append(layout)

    monkeypatch.setattr(session, "SessionExecutor", executor)
    banned: list[tuple[int, ...]] = []
    monkeypatch.setattr(TensorRtLlmLanguageModel, "__init__", lambda self, executor, ids: banned.append(tuple(ids)))
    open_language_model(changed(source, engine="tensorrt_llm", head_first_id=24, banned_ids=(3, 5)), slots=2)
    assert ([layout.head_first_id for layout in layouts], banned) == ([24], [(3, 5)])
    engine = open_language_model(changed(source, head_first_id=24, banned_ids=(3, 5)), slots=2)
    assert isinstance(engine, TorchCudaLanguageModel)
    assert engine.settings.first_mctp_id == 24
    assert source.gpu is not None
    assert engine.settings.bytes_beside == source.gpu.bytes_beside_slots


def test_cpu(engines: Path) -> None:
    manifest = load_manifest(engines)
    assert manifest.gpu is None
    source = EngineSource(engines, manifest)
    assert isinstance(open_language_model(source, 1), OnnxLanguageModel)
    assert isinstance(open_speech_tokenizer(source), OnnxSpeechTokenizer)
    assert isinstance(open_audio_decoder(source)[0], OnnxFlow)
    assert (source.prefill_chunk, source.decoder_batch) == (64, 1)


def test_torch_audio_engines_are_those_of_the_checkpoint(source: EngineSource, checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    speech = open_speech_tokenizer(source)
    reference = TorchSpeechTokenizer(*load_speech_tokenizer(checkpoint / "speech_tokenizer"))
    features = rng.standard_normal((speech.num_mel_bins, 64), np.float32)
    assert np.array_equal(speech.tokens(features, 60), reference.tokens(features, 60))
    flow, vocoder = open_audio_decoder(source)
    decoder = checkpoint / "audio_decoder"
    same = StreamingDecoder(TorchFlow(*load_flow(decoder)), TorchVocoder(*load_vocoder(decoder)))
    made, expected = (_sound(decoder).astype(int) for decoder in (StreamingDecoder(flow, vocoder), same))
    assert np.abs(made - expected).max() <= 2  # of 32767: fused products round differently
    assert source.decoder_batch == 1  # on a CPU, whatever the engines are for
    assert replace(source, device="cuda:0").decoder_batch == 8


def _sound(decoder: StreamingDecoder) -> np.ndarray:
    state = decoder.init(7)
    return np.concatenate([decoder.push(state, list(range(25))), decoder.finish(state)])


class StepByStep:
    """A flow without its own solver."""

    def __init__(self, flow: FlowEngine) -> None:
        self.mel_channels, self.block_tokens = flow.mel_channels, flow.block_tokens
        self.condition, self.velocity = flow.condition, flow.velocity


def test_a_flow_that_solves_itself_gives_the_same_sound(
    source: EngineSource, engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, vocoder = open_audio_decoder(source)
    assert isinstance(flow, SolvingFlowEngine)
    assert not isinstance(StepByStep(flow), SolvingFlowEngine)
    assert not isinstance(OnnxFlow(engines), SolvingFlowEngine)
    solved: list[list[float]] = []
    solve = TorchCudaFlow.solve

    def note(self: TorchCudaFlow, x: np.ndarray, mu: np.ndarray, cond: np.ndarray, times: list[float]) -> np.ndarray:
        solved.append(list(times))
        return solve(self, x, mu, cond, times)

    monkeypatch.setattr(TorchCudaFlow, "solve", note)
    step_by_step = _sound(StreamingDecoder(StepByStep(flow), vocoder))
    assert solved == []
    at_once = _sound(StreamingDecoder(flow, vocoder))
    assert len(solved) == 3  # decodes at 8, 20 and 25 tokens
    assert all(len(times) == 5 and times[0] == 0.0 and times[-1] == pytest.approx(1.0) for times in solved)
    assert np.abs(at_once.astype(int) - step_by_step.astype(int)).max() <= 1  # of 32767


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_engines_that_cannot_be_opened_here(source: EngineSource, tmp_path: Path) -> None:
    assert source.gpu is not None
    llm = changed(source, engine="tensorrt_llm")
    with pytest.raises(EngineError, match=r"tensorrt_llm 1\.2\.1 is not installed"):
        open_language_model(llm, 2)
    for opened in (open_speech_tokenizer, open_audio_decoder):
        with pytest.raises(EngineError, match=r"tensorrt_audio\.json: cannot be read .*build the audio engines"):
            opened(llm)
    other = changed(source, engine="vllm")
    for attempt, stage in (
        (partial(open_language_model, other, 2), "language_model"),
        (partial(open_speech_tokenizer, other), "speech_tokenizer"),
        (partial(open_audio_decoder, other), "flow"),
    ):
        with pytest.raises(
            EngineError, match=rf"engines\.{stage} is 'vllm', this version has onnxruntime, torch_cuda, .*; build"
        ):
            attempt()
    with pytest.raises(EngineError, match=r"engines\.vocoder is 'tensorrt_llm', which cannot run this stage; build"):
        open_audio_decoder(with_engines(source, vocoder="tensorrt_llm"))
    with pytest.raises(EngineError, match=r"engines\.flow is None, this version has"):
        open_audio_decoder(with_engines(source, flow=None))
    with pytest.raises(EngineError, match=r"weights\.safetensors: not readable weights"):
        open_language_model(replace(source, folder=tmp_path), 2)


#: Another family: a folder with a factory.
FACTORY = """
from dataclasses import dataclass

from vita_audio.engines.source import EngineSource


@dataclass
class Vocoder:
    source: EngineSource
    mel_channels: int


def language_model(source: EngineSource, slots: int) -> tuple[str, int, int]:
    return "a language model", slots, source.context_tokens


def vocoder(source: EngineSource) -> Vocoder:
    return Vocoder(source, source.config("vocoder")["in_channels"])
"""


def test_another_family_is_a_folder_and_a_line(
    source: EngineSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/engines.md says: written, registered, named by a manifest for two stages, opened beside others."""
    (tmp_path / "another_engine").mkdir()
    (tmp_path / "another_engine" / "factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FAMILIES, "another", "another_engine.factory")
    manifest = load_manifest(source.folder)
    named = replace(manifest, engines={**manifest.engines, "language_model": "another", "vocoder": "another"})
    (tmp_path / "manifest.json").write_text(named.to_json())
    found = EngineSource(source.folder, load_manifest(tmp_path), threads=3, device="cpu")
    assert found.manifest.engines == {
        "language_model": "another", "speech_tokenizer": "torch_cuda", "flow": "torch_cuda", "vocoder": "another",
    }  # fmt: skip
    assert open_language_model(found, 2) == ("a language model", 2, 128)
    flow, vocoder = open_audio_decoder(found)
    assert isinstance(flow, TorchCudaFlow)
    assert vocoder.mel_channels == flow.mel_channels
    assert (vocoder.source.threads, vocoder.source.device) == (3, "cpu")  # type: ignore[attr-defined]


def test_manifests_without_families_mean_what_the_builder_makes(source: EngineSource, engines: Path) -> None:
    for folder, expected in ((source.folder, "torch_cuda"), (engines, "onnxruntime")):
        fields = json.loads((folder / "manifest.json").read_text())
        assert fields.pop("engines", {"language_model": expected})["language_model"] == expected
        assert Manifest.from_json(json.dumps(fields)) == load_manifest(folder)


def test_conformance_covers_every_family_with_a_language_model() -> None:
    with_language_model = {
        family
        for family in FAMILIES
        if "def language_model(" in (ROOT / "vita_audio" / "engines" / family / "factory.py").read_text()
    }
    assert with_language_model | {"torch"} == set(ENGINES)
    assert {path.parent.name for path in (ROOT / "vita_audio" / "engines").glob("*/factory.py")} == set(FAMILIES)


#: All that the model processes of the GPU profile open and warm up.
OPEN_AND_WARM_UP = """
import sys
from pathlib import Path
import numpy as np
from vita_audio.engines.manifest import check_manifest
from server.launch import TritonServer
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.engines.registry import open_audio_decoder, open_language_model, open_speech_tokenizer
from vita_audio.engines.source import EngineSource
from vita_audio.generation.service import GenerationService
from serving.prompt_stage import PromptStage
from vita_audio.speech_features import speech_tokens
from vita_audio.text.tokenizer import TextTokenizer
from serving.warm_up import warm_up_generation, warm_up_speech

folder = Path(sys.argv[1])
manifest = check_manifest(folder, target="gpu", device="cpu")
source = EngineSource(folder, manifest, device="cpu")
speech = open_speech_tokenizer(source)
warm_up_speech(lambda clip: speech_tokens(speech, clip))
stage = PromptStage(TextTokenizer(folder / "tokenizer.json"), manifest.limits, lambda clip: speech_tokens(speech, clip))
prompt = stage.prepare({"AUDIO": np.full(8000, 0.1, np.float32)})
service = GenerationService(open_language_model(source, 1), manifest.vocabulary.end_tokens, source.prefill_chunk)
warm_up_generation(service, manifest.limits)
service.close()
StreamingDecoder(*open_audio_decoder(source)).warm_up()
print(len(prompt.tokens))
"""


def test_nothing_of_onnx_is_needed(source: EngineSource, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_AND_WARM_UP, str(source.folder)]
    done = subprocess.run(command, cwd=ROOT, env=without_onnx(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10  # tokens of a prompt


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_torch_engines_say_so(source: EngineSource) -> None:
    elsewhere = replace(source, device="cuda:0")
    for opened in (lambda: open_language_model(elsewhere, 1), lambda: open_audio_decoder(elsewhere)):
        with pytest.raises(EngineError, match="need a CUDA device and PyTorch sees none"):
            opened()


OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update your GPU driver."


def test_a_gpu_that_does_not_do_is_named(source: EngineSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def old_driver() -> None:
        raise RuntimeError(OLD_DRIVER)

    elsewhere = replace(source, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "init", old_driver)
    with pytest.raises(
        EngineError, match=r"sees none \(.*too old \(found version 11040\). Please update .*\); serve CPU"
    ):
        open_language_model(elsewhere, 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(EngineError, match=r"Tesla T4 has compute capability 7\.5, below 8\.0; serve CPU engines"):
        open_language_model(elsewhere, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert device_of(elsewhere).type == "cuda"


def test_more_slots_than_the_engines_were_built_for(
    source: EngineSource, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = source.gpu
    assert gpu is not None
    check_slots(gpu, 1000)
    llm = replace(gpu, engine="tensorrt_llm")
    check_slots(llm, 2)
    with pytest.raises(
        EngineError, match=r"--slots: 3 but gpu\.max_streams of the engines is 2; serve fewer, or build"
    ):
        open_language_model(changed(source, engine="tensorrt_llm"), 3)

    # The server asks before it starts anything.
    monkeypatch.setattr("vita_audio.engines.manifest.find_machine", lambda: CONTAINER)
    check_engines(source.folder, checkpoint, "gpu", slots=64)
    monkeypatch.setattr("server.checks.check_slots", lambda found, slots: check_slots(llm, slots))
    with pytest.raises(CannotStart, match=r"--slots: 64 but gpu\.max_streams of the engines is 2"):
        check_engines(source.folder, checkpoint, "gpu", slots=64)
    monkeypatch.setattr("vita_audio.engines.manifest.find_machine", lambda: replace(CONTAINER, gpus=()))
    with pytest.raises(CannotStart, match=r"there is no GPU here .* or with --device cpu"):
        check_engines(source.folder, checkpoint, "gpu", slots=2)
