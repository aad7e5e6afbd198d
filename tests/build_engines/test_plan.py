"""The arithmetic of a GPU build against sums written out here, from the facts and not from the code."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from build_engines.audio_memory import audio_buffers, captured_bytes, decoder_state_bytes
from build_engines.options import GpuOptions
from build_engines.plan import GIB, RESERVE_BYTES, GpuPlan, main, plan_build
from build_engines.sizes import read_sizes, released_sizes
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import RELEASED, TINY
from vita_audio.contract.errors import CheckpointError, EngineError
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.decoding.stream_buffers import StreamBuffers, ring_frames
from vita_audio.engines.arrays import HostArrays
from vita_audio.engines.gpu_room import room_bytes
from vita_audio.engines.torch_cuda import device_arrays
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.memory import check_memory, programs_bytes, slot_bytes
from vita_audio.engines.torch_cuda.shapes import Limits
from vita_audio.models.flow import Flow
from vita_audio.models.vocoder import Vocoder
from vita_audio.text.vocabulary import BASE

ROOT = Path(__file__).resolve().parents[2]
# The released 7B, by docs/model.md.
VOCAB, HIDDEN, FFN, HEADS, KV_HEADS, HEAD, L, K = 168_072, 3584, 18_944, 28, 4, 128, 28, 10
QKV = (HEADS + 2 * KV_HEADS) * HEAD
LINEAR = QKV * HIDDEN + HIDDEN * HIDDEN + 3 * HIDDEN * FFN  # of one decoder layer
LAYER = LINEAR + QKV + 2 * HIDDEN
MODULE = LAYER + 2 * HIDDEN * HIDDEN + 2 * HIDDEN
AUDIO_HEAD = VOCAB - 151_640
LLM = GpuOptions("tensorrt_llm")


def plan(**options: object) -> GpuPlan:
    """Of TensorRT-LLM unless `options` name another engine."""
    return plan_build(released_sizes(), replace(LLM, **options), 4096)  # type: ignore[arg-type]


def test_bf16_weights() -> None:
    made = plan()
    assert made.weights["backbone"] == 2 * (2 * VOCAB * HIDDEN + L * LAYER + HIDDEN)
    assert made.weights["mctp"] == 2 * ((VOCAB + AUDIO_HEAD) * HIDDEN + K * MODULE + HIDDEN)
    full = plan(head="full")
    assert full.weights["mctp"] - made.weights["mctp"] == 2 * 151_640 * HIDDEN
    assert made.files["language_model/backbone"] == made.scratch["converted backbone"] == made.weights["backbone"]
    assert made.disk == 2 * (made.weights["backbone"] + made.weights["mctp"]) + 2 * _audio(made)


def _audio(made: GpuPlan) -> int:
    return sum(made.weights[name] for name in ("flow", "vocoder", "speech tokenizer"))


def test_fp8_weights() -> None:
    """One byte for each linear weight, two scales for each linear layer (4), and one for each layer's cache."""
    made = plan(format="fp8", fp8_kv_cache=True)
    others = 2 * (2 * VOCAB * HIDDEN + L * (QKV + 2 * HIDDEN) + HIDDEN)
    layers = L * (LINEAR + 5 * 2 * 4 + 4)  # qkv, dense, fc, gate, proj
    assert made.weights["backbone"] == others + layers


def test_w4a16_weights() -> None:
    """Half a byte for each linear weight, a bf16 scale for 128 of them, a bf16 factor for each input."""
    made = plan(format="w4a16", mctp_format="bf16")
    inputs = 4 * HIDDEN + FFN  # of qkv, dense, fc, gate and of proj
    layers = L * (LINEAR // 2 + 2 * LINEAR // 128 + 2 * inputs)
    assert made.weights["backbone"] == 2 * (2 * VOCAB * HIDDEN + L * (QKV + 2 * HIDDEN) + HIDDEN) + layers
    assert made.weights["mctp"] == plan().weights["mctp"]


@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallel_shares(tp: int) -> None:
    """The embedding and the norms are whole on each GPU, linear layers and head are shared, the output's is summed."""
    made = plan(tp=tp)
    shared = L * (LINEAR + QKV) + VOCAB * HIDDEN
    assert made.weights["backbone"] == 2 * (VOCAB * HIDDEN + L * 2 * HIDDEN + HIDDEN + shared // tp)
    assert made.stream == 4096 * ((L + K) * 2 * (KV_HEADS // tp) * HEAD * 2 + 2 * HIDDEN) + 6 * VOCAB


def test_streams_and_their_buffers() -> None:
    made = plan(streams=64, step_tokens=2048)
    # Keys and values of 38 layers, the hidden state of each position, ids seen (two copies), float32 logits.
    assert made.stream == 4096 * (38 * 2 * 4 * 128 * 2 + 3584 * 2) + 2 * VOCAB + 4 * VOCAB
    assert plan(format="fp8", fp8_kv_cache=True).stream == 4096 * (38 * 2 * 4 * 128 + 3584 * 2) + 6 * VOCAB
    assert made.buffers["hidden states of a step"] == 2048 * 3584 * 2
    assert made.buffers["activations of a step"] == 2 * 2048 * 2 * (2 * 3584 + 2 * 18_944)
    assert made.buffers["MCTP logits"] == 64 * 4 * AUDIO_HEAD
    parts = [*made.weights.values(), *made.buffers.values(), RESERVE_BYTES, 64 * made.stream]
    assert made.total == sum(parts)
    assert plan(streams=1).context == 4096
    assert plan_build(released_sizes(), LLM, 1 << 20).context == 32_768


def test_torch_cuda() -> None:
    made = plan(engine="torch_cuda")
    assert made.weights["language model"] == 2 * (2 * VOCAB * HIDDEN + L * LAYER + K * MODULE + HIDDEN)
    assert made.stream == 4096 * (38 * 2 * 4 * 128 + 3584) * 2 + VOCAB
    assert made.scratch == {}
    for fit in (1, 64, 123):
        room = made.fixed + fit * made.stream * 10 / 9 + (fit - 64) * made.stream_buffers
        assert made.streams_that_fit(int(room) + 2) == fit
        assert made.streams_that_fit(int(room) - 1000) == fit - 1


@pytest.mark.parametrize(("modules", "parameters"), [(0, 7_979_042_111), (10, 10_566_592_831)])
def test_plus(tmp_path: Path, modules: int, parameters: int) -> None:
    """From the authors' config.json alone; numbers of docs/plus.md. The CTC head is not kept."""
    path = tmp_path / "config.json"
    config = replace(
        RELEASED.language_model,
        vocab_size=VOCAB if modules else 152_064,  # in training it gets the rows of audio tokens
        num_hidden_layers=L + modules,
        num_nextn_predict_layers=modules,
    )
    path.write_text(json.dumps({"model_type": "qwen2_mtp_sensevoice", **asdict(config)}))
    sizes = read_sizes(path)
    tower, projector, ctc_head = 233_999_167, 14_681_088, 12_853_215
    made = plan_build(sizes, GpuOptions(engine="torch_cuda"), 4096)
    assert made.weights["language model"] == 2 * (parameters - tower - projector)
    assert made.weights["SenseVoice"] == made.files["audio/SenseVoice"] == 4 * (tower - ctc_head + projector)
    assert made.stream == 4096 * ((L + modules) * 2 * 4 * 128 + HIDDEN) * 2 + VOCAB
    # 120 s are 11 998 frames, 2 000 rows and 4 queries, each of which is scored against all by 4 heads. A graph pads.
    row = 2 * 560 + 3 * 512 + 2048 + 3 * HIDDEN
    assert made.buffers["SenseVoice activations"] == 4 * 2048 * (row + 4 * 2048)
    prepared = 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048
    assert made.buffers["SenseVoice clips"] == 4 * 560 * sum(prepared)
    short = plan_build(sizes, GpuOptions(engine="torch_cuda"), 100).buffers  # clips of 64, 96 and 128
    assert made.buffers["audio graphs"] - short["audio graphs"] == 8 * 70 * 12 * 4096
    # 64 streams that read the rest of a prompt in a step beside others, of at most K + 1 rows each.
    assert made.buffers["prompt rows"] == max(512, 64 * (modules + 1)) * HIDDEN * 2
    assert "prompt rows" not in plan(engine="torch_cuda").buffers
    assert not any("speech tokenizer" in name for name in made.weights | made.buffers | made.files)
    if modules:
        released = plan_build(released_sizes("sensevoice"), GpuOptions(engine="torch_cuda"), 4096)
        assert replace(sizes, source="") == replace(released_sizes("sensevoice"), source="")
        assert made == released
        assert plan_build(sizes, LLM, 4096).buffers["prompt table"] == LLM.step_tokens * HIDDEN * 2
        assert plan_build(sizes, LLM, 4096).weights["backbone"] == PLAN.weights["backbone"]
        assert plan_build(sizes, LLM, 4096).buffers["SenseVoice activations"] == 4 * 2004 * (row + 4 * 2004)
        assert plan_build(sizes, LLM, 64).buffers["SenseVoice activations"] == 4 * 64 * (row + 4 * 64)


def test_plus_sizes_of_a_bundle(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, TINY, speech_input="sensevoice")
    assert read_sizes(tmp_path).sensevoice == TINY.sensevoice
    code, text = run("--checkpoint", tmp_path, "--engine", "torch_cuda")
    assert code == 0
    assert "weights: SenseVoice" in text
    assert "--speech-input: --checkpoint says it" in run("--checkpoint", tmp_path, "--speech-input", "sensevoice")[1]
    assert "the released 7B Plus" in run("--speech-input", "sensevoice")[1]


def test_torch_cuda_in_fp8() -> None:
    """A byte for each weight of a layer and 4 for each of its outputs; the modules' head is one more matrix."""
    base = plan(engine="torch_cuda").weights["language model"]
    outputs = QKV + HIDDEN + 2 * FFN + HIDDEN
    layer, module = LINEAR - 4 * outputs, LINEAR + 2 * HIDDEN * HIDDEN - 4 * (outputs + HIDDEN)

    def saved(**formats: str) -> int:
        return base - plan(engine="torch_cuda", **formats).weights["language model"]

    assert saved(format="fp8") == L * layer + K * module
    assert saved(format="fp8", mctp_format="bf16") == L * layer
    assert saved(mctp_format="fp8") == K * module
    assert saved(mctp_head_format="fp8") == -AUDIO_HEAD * (HIDDEN + 4)
    assert saved(mctp_head_format="fp8", head="full") == -VOCAB * (HIDDEN + 4)


def test_the_documentation_has_the_numbers_of_fp8() -> None:
    """The table of torch_cuda's formats in docs/gpu.md."""
    text = (ROOT / "docs" / "gpu.md").read_text()
    for name, formats in {
        "`--mctp-head-format fp8`": {"mctp_head_format": "fp8"},
        "`--mctp-format fp8 --mctp-head-format fp8`": {"mctp_format": "fp8", "mctp_head_format": "fp8"},
        "`--format fp8 --mctp-head-format fp8`": {"format": "fp8", "mctp_head_format": "fp8"},
    }.items():
        made = plan(engine="torch_cuda", **formats)
        fit = " | ".join(str(made.streams_that_fit(int(size * GIB))) for size in (22.5, 44.5, 79.5))
        stored = made.weights["language model"] / 1e9
        assert f"| {name} | {stored:.2f} | {made.total / GIB:.1f} | {fit} |" in text


@settings(deadline=None, max_examples=25)
@given(memory=st.integers(0, 200 * GIB), streams=st.integers(1, 512))
def test_what_fits_fits_and_one_more_does_not(memory: int, streams: int) -> None:
    made = plan(streams=streams)
    fit = made.streams_that_fit(memory)
    assert fit == PLAN.streams_that_fit(memory)  # whatever number is asked for
    assert not fit or plan(streams=fit).total <= memory
    assert plan(streams=fit + 1).total > memory
    if streams <= fit:
        made.check_fit(memory, "GPU")
    else:
        with pytest.raises(EngineError, match=f"--streams: {streams} streams .* GPU has .*; {fit} fit"):
            made.check_fit(memory, "GPU")


PLAN = plan()


@pytest.mark.parametrize("fp8", [False, True])
@given(memory=st.integers(30, 200), streams=st.integers(1, 256))
@settings(max_examples=30, deadline=None)
def test_what_the_plan_lets_through_starts(fp8: bool, memory: int, streams: int) -> None:
    """On a GPU that holds nothing else, in whatever order the processes of the server load their engines."""
    config, total = RELEASED.language_model, memory * GIB
    made = plan(engine="torch_cuda", streams=streams, mctp_head_format="fp8" if fp8 else "bf16")
    assert made.beside_slots + made.buffers["programs"] + made.reserve == made.fixed
    try:
        made.check_fit(total, "this GPU")
    except EngineError:
        return
    limits = Limits(streams, config.mctp_modules, 4096)
    programs, language_model = programs_bytes(config, limits, 256, 2), made.weights["language model"]
    for loaded in (language_model, made.beside_slots):  # alone yet; after all others
        room = room_bytes(total - loaded, total, made.beside_slots)
        check_memory(streams, 4096, slot_bytes(config, 4096, 2), programs, room)


def test_audio_weights_are_those_of_the_files(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, TINY, seed=0)
    sizes = read_sizes(tmp_path)
    assert (sizes.flow, sizes.vocoder, sizes.speech_tokenizer) == (TINY.flow, TINY.vocoder, TINY.speech_tokenizer)
    made = plan_build(sizes, GpuOptions(engine="torch_cuda"), 64)
    stored = (tmp_path / "language_model" / "model.safetensors").stat().st_size
    assert stored // 2 - 20_000 < made.weights["language model"] <= stored // 2  # float32 there, and a header
    flow = (tmp_path / "audio_decoder" / "flow.pt").stat().st_size
    assert made.weights["flow"] <= flow < made.weights["flow"] + 100_000


def test_the_documentation_has_these_numbers() -> None:
    """The plan table of docs/gpu.md."""
    text = (ROOT / "docs" / "gpu.md").read_text()
    rows = {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 10
    }
    for name, options in {
        "bf16": {},
        "fp8, fp8 KV cache": {"format": "fp8", "fp8_kv_cache": True},
        "w4a16": {"format": "w4a16"},
        "bf16, `--tp 2`, each GPU": {"tp": 2},
        "`--engine torch_cuda`": {"engine": "torch_cuda"},
    }.items():
        made = plan(**options)
        assert rows[name] == [
            f"{sum(made.weights.values()) / GIB:.1f}",
            f"{made.stream / GIB:.3f}",
            f"{made.total / GIB:.1f}",
            *(str(made.streams_that_fit(int(gib * GIB))) for gib in (22.5, 44.5, 79.5, 139.5)),
            f"{made.disk / GIB:.1f}",
            f"{made.host_build / GIB:.0f}",
        ]


def test_audio_buffers_of_torch_cuda() -> None:
    """Summed here from what engines hold, and captured as often as they are warmed up."""
    sizes = released_sizes()
    made = audio_buffers(sizes, 64, 8, 4096)
    assert made["speech tokenizer states"] == 2 * 1600 * 16 * 2 * 1280 * 4  # two pieces of 8 blocks of 200 positions
    assert made["decoder streams"] == 192 * decoder_state_bytes(sizes)
    assert 1.2 < made["audio graphs"] / GIB < 1.5
    cpu = torch.device("cpu")
    flow = TorchCudaFlow(TINY.flow, Flow(TINY.flow).state_dict(), cpu)
    decoder = StreamingDecoder(flow, TorchCudaVocoder(TINY.vocoder, Vocoder(TINY.vocoder).state_dict(), cpu))
    with mock.patch.object(device_arrays, "FixedShape"):
        decoder.warm_up(8)
    nodes = len(decoder._make_mel) * 2808 + len(decoder._make_pcm) * 304 + 16 * 16 * 12  # type: ignore[arg-type]
    assert made["audio graphs"] == nodes * 4096
    assert sum(audio_buffers(sizes, 8, 4, 4096).values()) < sum(made.values())


def test_captured_calls() -> None:
    """One bucket of one geometry more: the plan of a batch of 2 adds the batch of 2 to that of 1."""
    sizes = released_sizes()
    one, two = captured_bytes(sizes, 1), captured_bytes(sizes, 2)
    assert 2 * one < two <= 3 * one  # times do not grow with the batch
    assert captured_bytes(sizes, 3) > two


def test_decoder_state_is_what_a_stream_carries() -> None:
    config = DecoderConfig()
    of = {streams: StreamBuffers(HostArrays(), config, streams, ring_frames(config, 10), 80) for streams in (1, 2)}
    one, two = (
        sum(values.nbytes for values in (made.mel, made.held, made.noise, made.source, made.phase))
        for made in of.values()
    )
    assert two - one == decoder_state_bytes(released_sizes())


def test_config_json_alone_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "qwen2_mtp", **asdict(RELEASED.language_model)}))
    for named in (path, tmp_path):
        sizes = read_sizes(named)
        assert sizes.language_model == RELEASED.language_model
        assert sizes.text_tokens == BASE.text_tokens
        assert plan_build(sizes, LLM, 4096) == PLAN
    with pytest.raises(CheckpointError, match=r"config\.json: file is missing"):
        read_sizes(tmp_path / "nothing")


def run(*arguments: object) -> tuple[int, str]:
    app = Typer()
    app.command()(main)
    engine = () if "--engine" in arguments else ("--engine", "tensorrt_llm")
    result = CliRunner().invoke(app, [str(argument) for argument in (*engine, *arguments)])
    return result.exit_code, result.output


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    code, text = run("--memory", 79.5, "--memory", 22.5)
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert ["weights: backbone", f"{PLAN.weights['backbone'] / GIB:.2f}"] in rows
    assert ["64 streams", f"{64 * PLAN.stream / GIB:.2f}"] in rows
    assert ["sum", f"{PLAN.total / GIB:.2f}"] in rows
    assert ["79.5", str(PLAN.streams_that_fit(int(79.5 * GIB)))] in rows
    assert ["22.5", "0"] in rows
    assert "from id 151640 on (audio only)" in text
    assert "not measured" in text
    assert "one GPU: engines for more are built, but not served" in run("--tp", 2)[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--format", "int3"), "--format: 'int3' is not valid: choose one of bf16, fp8, w4a16"),
        (("--engine", "vllm"), "--engine: 'vllm' is not valid"),
        (("--head", "half"), "--head: 'half' is not valid: choose one of auto, full, audio"),
        (("--tp", 3), "--tp: 3 does not divide num_attention_heads 28"),
        (("--streams", 0), "--streams: 0 is not valid: 1 to 2048"),
        (("--streams", 64, "--step-tokens", 32), "--step-tokens: 32 is not valid: 64 to"),
        (("--streams", 8, "--step-tokens", 8), "--step-tokens: 8 is not valid: at least K + 1 = 11"),
        (
            ("--engine", "torch_cuda", "--streams", 8, "--step-tokens", 10),
            "--step-tokens: 10 is not valid: at least K + 1 = 11",
        ),
        (("--context-tokens", 0), "--context-tokens: 0 is not valid: at least 32"),
        (("--context-tokens", -5), "--context-tokens: -5 is not valid: at least 32"),
        (("--memory", "nan"), "--memory: nan is not valid: a finite number of GiB above 0"),
        (("--memory", "inf"), "--memory: inf is not valid"),
        (("--memory", 80, "--memory", 0), "--memory: 0 is not valid"),
        (("--candidates", 2000), "--candidates: 2000 is not valid: 1 to 1024"),
        (("--fp8-kv-cache",), "--fp8-kv-cache: needs --format fp8 for both parts, they are bf16 and bf16"),
        (("--mctp-head-format", "fp8"), "--mctp-head-format: fp8 is for --engine torch_cuda"),
        (("--mctp-head-format", "w4a16"), "--mctp-head-format: 'w4a16' is not valid: choose one of bf16, fp8"),
        (("--engine", "torch_cuda", "--format", "w4a16"), "--format: w4a16 is for --engine tensorrt_llm"),
        (("--engine", "torch_cuda", "--mctp-format", "w4a16"), "--mctp-format: w4a16 is for --engine tensorrt_llm"),
        (("--engine", "torch_cuda", "--tp", 2), "--tp: the torch_cuda engine"),
        (("--engine", "torch_cuda", "--format", "fp8", "--fp8-kv-cache"), "--fp8-kv-cache: the torch_cuda engine"),
        (("--checkpoint", "/nonexistent"), "config.json: file is missing"),
    ],
)
def test_bad_options(arguments: tuple[object, ...], told: str) -> None:
    code, text = run(*arguments)
    assert code == 1
    assert f"error: {told}" in text or told in text
    assert len(text.strip().splitlines()) == 1
