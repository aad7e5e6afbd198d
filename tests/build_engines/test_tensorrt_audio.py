"""Audio engines on TensorRT as far as no GPU is needed: graphs, profiles, plan, compiling ahead of time on a CPU."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.sensevoice import export_sensevoice
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from build_engines.onnxruntime.vocoder import export_vocoder
from build_engines.tensorrt_audio.build import (
    AHEAD_FOR,
    DECODER_ENGINES,
    HALF_PRODUCTS,
    SPEECH_ENGINES,
    build_engine,
    compile_on_cpu,
    plan_engines,
)
from build_engines.tensorrt_audio.graphs import standard_graph, with_frame_maps
from build_engines.tensorrt_audio.profiles import decoder_geometries, profiles
from decoding_doubles import NotingEngines
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.random_weights.__main__ import write_random_checkpoint
from vita_audio.checkpoint.sizes import TINY
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.errors import EngineError
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.schedule import DecoderConfig
from vita_audio.engines.onnxruntime.session import open_session
from vita_audio.engines.tensorrt_audio.audio import (
    TensorRtFlow,
    TensorRtSenseVoice,
    TensorRtSpeechTokenizer,
    TensorRtVocoder,
    clip_geometry,
    mel_geometry,
    wave_geometry,
    window_geometry,
)
from vita_audio.engines.tensorrt_audio.plan import (
    BATCH,
    FLOW_CONDITION,
    FLOW_VELOCITY,
    SENSEVOICE,
    SPEECH_TOKENIZER,
    VOCODER,
    VOCODER_F0,
    AudioPlan,
    EnginePlan,
    batch_buckets,
    load_plan,
)
from vita_audio.models.flow import Flow
from vita_audio.models.sensevoice import SenseVoice
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder

MAX_BATCH = 8
AUDIO_ENGINES = DECODER_ENGINES | SPEECH_ENGINES


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audio graphs of the tiny random-weight checkpoint, as a build for TensorRT exports them."""
    folder = tmp_path_factory.mktemp("audio")
    write_random_checkpoint(folder / "checkpoint", TINY, seed=0)
    decoder, out = folder / "checkpoint" / "audio_decoder", folder / "graphs"
    whole_pieces = partial(export_speech_tokenizer, whole=True)
    for config_class, load, export, at in (
        (Flow, load_flow, export_flow, decoder),
        (Vocoder, load_vocoder, export_vocoder, decoder),
        (SpeechTokenizer, load_speech_tokenizer, whole_pieces, folder / "checkpoint" / "speech_tokenizer"),
    ):
        config, tensors = load(at)  # type: ignore[operator]
        model = config_class(config).eval()
        model.load_state_dict(tensors)
        export(model, out)  # type: ignore[operator]
    torch.manual_seed(0)
    tables = np.zeros(560, np.float32), np.ones(560, np.float32)
    export_sensevoice(SenseVoice(TINY.sensevoice).eval(), *tables, out)
    return out


@pytest.fixture(scope="module")
def plans(graphs: Path) -> dict[str, EnginePlan]:
    base = plan_engines(graphs, DecoderConfig(), MAX_BATCH)
    plus = plan_engines(graphs, DecoderConfig(), MAX_BATCH, SENSEVOICE)
    assert base.keys() - plus.keys() == {SPEECH_TOKENIZER}
    assert plus.keys() - base.keys() == {SENSEVOICE}
    return {name: plan for name, (plan, _) in (base | plus).items()}


@pytest.mark.timeout(1200)  # 15 s of one free core
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt-rtx-cu13==1.7.1.116 (pip, Linux x86-64)"
)
class TestOnTensorRt:
    """The real parser and compiler, without a GPU."""

    def test_every_graph_compiles_with_the_profiles_of_production(self, graphs: Path) -> None:
        sizes = compile_on_cpu(graphs, DecoderConfig(), MAX_BATCH)
        assert set(sizes) == set(DECODER_ENGINES) | {SPEECH_TOKENIZER}
        assert min(sizes.values()) > 100_000  # bytes: three profiles of real code

    def test_sensevoice_compiles(self, graphs: Path) -> None:
        import tensorrt_rtx
        import tensorrt_rtx_libs  # noqa: F401

        plan, model = plan_engines(graphs, DecoderConfig(), MAX_BATCH, SENSEVOICE)[SENSEVOICE]
        assert len(build_engine(tensorrt_rtx, SENSEVOICE, plan, model, AHEAD_FOR)) > 100_000

    def test_a_profile_that_does_not_fit_the_graph_is_refused(self, graphs: Path) -> None:
        import tensorrt_rtx
        import tensorrt_rtx_libs  # noqa: F401

        plan, model = plan_engines(graphs, DecoderConfig(), MAX_BATCH)[VOCODER_F0]
        wrong = replace(plan, inputs={"mel": (BATCH, 79, "frames")})
        with pytest.raises(EngineError, match="vocoder_f0"):
            build_engine(tensorrt_rtx, VOCODER_F0, wrong, model)


def inputs_of(name: str, frames: int, batch: int) -> dict[str, np.ndarray]:
    """Random inputs of one engine."""
    rng = np.random.default_rng(frames)
    mels = TINY.flow.output_size

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if name == FLOW_CONDITION:
        tokens = max(1, frames * 64 // 441)
        frame_token = np.arange(frames) * tokens // frames
        return {"tokens": rng.integers(0, 256, (batch, tokens)), "frame_token": frame_token.astype(np.int64)}
    if name == FLOW_VELOCITY:
        shape = (batch, mels, frames)
        return {name: normal(*shape) for name in ("x", "mu", "cond")} | {"t": np.array([0.3], np.float32)}
    if name == VOCODER_F0:
        return {"mel": normal(batch, mels, frames)}
    if name == VOCODER:
        return {"mel": normal(batch, mels, frames), "source": 0.1 * normal(batch, 256 * frames)}
    if name == SENSEVOICE:  # the first clip is shorter than the rows that there are
        lengths = np.maximum(1, frames - 7 * np.arange(batch)[::-1])
        return {"features": normal(batch, frames, 560), "lengths": lengths}
    features = normal(1, TINY.speech_tokenizer.num_mel_bins, frames // 8 * 8)
    return {"features": features, "valid_frames": np.array([features.shape[2] - 3], np.int64)}


def run(graph: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return open_session(graph, threads=1).run(None, inputs)[0]


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "saved.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", list(AUDIO_ENGINES))
def test_the_rewritten_graphs_compute_the_same(graphs: Path, name: str, tmp_path: Path) -> None:
    path = graphs / AUDIO_ENGINES[name].file
    model = standard_graph(path, half_products=False)
    assert {node.domain for node in model.graph.node} == {""}
    for frames, batch in ((55, 2), (138, 1)):
        inputs = inputs_of(name, frames, batch)
        wanted, got = run(path, inputs), run(saved(model, tmp_path), inputs)
        assert got.shape == wanted.shape
        if name == SENSEVOICE:
            wanted, got = (made[0, : inputs["lengths"][0] + 4] for made in (wanted, got))
        if name == SPEECH_TOKENIZER:
            assert got.tolist() == wanted.tolist()
        else:
            assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_each_window_has_a_frame_map_of_its_own(graphs: Path, tmp_path: Path) -> None:
    path = graphs / AUDIO_ENGINES[FLOW_CONDITION].file
    model = with_frame_maps(standard_graph(path, half_products=False))
    inputs = inputs_of(FLOW_CONDITION, 55, 2)
    maps = [inputs["frame_token"], np.minimum(np.arange(55) // 8, 7)]
    got = run(saved(model, tmp_path), {**inputs, "frame_token": np.stack(maps)})
    for row, frame_token in enumerate(maps):
        alone = run(path, {"tokens": inputs["tokens"][row : row + 1], "frame_token": frame_token})
        assert np.abs(got[row] - alone[0]).max() < 1e-5 * np.abs(alone).max()


def test_half_products_stay_close_to_float32(graphs: Path, tmp_path: Path) -> None:
    """6e-4 of the largest value was measured on a CPU, where a step of float16 is 5e-4."""
    assert AUDIO_ENGINES[FLOW_VELOCITY].precision == HALF_PRODUCTS
    path, inputs = graphs / AUDIO_ENGINES[FLOW_VELOCITY].file, inputs_of(FLOW_VELOCITY, 137, 2)
    model = standard_graph(path, half_products=True)
    wanted, got = run(path, inputs), run(saved(model, tmp_path), inputs)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < error < 1e-2
    stored = {weight.data_type for weight in model.graph.initializer if len(weight.dims) == 4}
    assert stored == {10}  # every convolution's weights: float16


def test_what_is_not_a_graph_is_refused(tmp_path: Path, graphs: Path) -> None:
    with pytest.raises(EngineError, match="export the engines again"):
        standard_graph(tmp_path / "flow_velocity.onnx", False)
    with pytest.raises(EngineError, match="--max-batch: 0"):
        plan_engines(graphs, DecoderConfig(), 0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_profiles_take_every_stream_however_it_arrives(tokens: int, pieces: list[int]) -> None:
    config = DecoderConfig(flow_steps=1)
    geometries = decoder_geometries(config, 10)
    noted = NotingEngines(4, 10)
    decoder = StreamingDecoder(noted, noted, config)
    state = decoder.init(0)
    for piece in pieces:
        piece = min(piece, tokens - len(state.codes))
        decoder.push(state, [0] * piece)
    decoder.push(state, [0] * (tokens - len(state.codes)))
    decoder.finish(state)
    asked = {
        "condition": [{"tokens": n, "frames": f} for n, f in noted.windows],
        "velocity": [{"frames": f} for f in noted.velocities],
        "f0": [{"frames": f} for f in noted.f0s],
        "vocoder": [{"frames": f, "samples": 256 * f} for f in noted.waves],
    }
    for engine, found in asked.items():
        made = getattr(geometries, engine)
        plan = EnginePlan("float32", {}, profiles(made, MAX_BATCH), {})
        for geometry in found:
            plan.profile_of({BATCH: MAX_BATCH, **geometry})  # raises when none fits


def test_first_and_steady_chunks_have_profiles_of_their_own(plans: dict[str, EnginePlan]) -> None:
    velocity = plans[FLOW_VELOCITY]
    frames = [geometry["frames"] for geometry in decoder_geometries(DecoderConfig(), 10).velocity.running]
    assert frames[0] == 55  # 8 tokens
    assert [velocity.profile_of({BATCH: 1, "frames": f}) for f in (frames[0], frames[-1], frames[0] + 1)] == [0, 1, 2]
    with pytest.raises(EngineError, match=f"frames is {frames[-1] + 1}, the engine was built for 6 to {frames[-1]}"):
        velocity.profile_of({BATCH: 1, "frames": frames[-1] + 1})
    with pytest.raises(EngineError, match="batch is 9"):
        velocity.profile_of({BATCH: 9, "frames": frames[0]})


def test_shapes_follow_the_geometry(plans: dict[str, EnginePlan]) -> None:
    mels = TINY.flow.output_size
    assert plans[FLOW_VELOCITY].shapes({BATCH: 2, "frames": 55}) == {
        "x": (2, mels, 55), "mu": (2, mels, 55), "cond": (2, mels, 55), "t": (1,),
    }  # fmt: skip
    assert plans[FLOW_CONDITION].shapes({BATCH: 2, "tokens": 8, "frames": 55}) == {
        "tokens": (2, 8), "frame_token": (2, 55),
    }  # fmt: skip
    assert plans[VOCODER].shapes({BATCH: 1, "frames": 38, "samples": 9728})["source"] == (1, 9728)
    assert plans[SPEECH_TOKENIZER].profile_of({BATCH: 1, "frames": 2}) == 0
    assert plans[SPEECH_TOKENIZER].profile_of({BATCH: 1, "frames": 3000}) == 1
    assert plans[SENSEVOICE].shapes({BATCH: 1, "rows": 5}) == {"features": (1, 5, 560), "lengths": (1,)}
    assert [plans[SENSEVOICE].profile_of({BATCH: 1, "rows": rows}) for rows in (1, 128, 129, 2000)] == [0, 0, 1, 1]
    with pytest.raises(EngineError, match="rows is 2001, the engine was built for 1 to 2000"):
        plans[SENSEVOICE].profile_of({BATCH: 1, "rows": 2001})


def test_batches_are_padded_to_buckets() -> None:
    assert batch_buckets(8) == [1, 2, 4, 8]
    assert batch_buckets(6) == [1, 2, 4, 8]
    assert batch_buckets(1) == [1]
    made = decoder_geometries(DecoderConfig(), 10).velocity
    assert [profile[BATCH] for profile in profiles(made, 6)] == [(1, 1, 8)] * 3


def test_every_captured_geometry_has_a_profile(plans: dict[str, EnginePlan]) -> None:
    made = decoder_geometries(DecoderConfig(), 10)
    decoder = {FLOW_CONDITION: made.condition, FLOW_VELOCITY: made.velocity, VOCODER_F0: made.f0, VOCODER: made.vocoder}
    assert {name: len(geometries.running) for name, geometries in decoder.items()} == {
        FLOW_CONDITION: 4, FLOW_VELOCITY: 4, VOCODER_F0: 3, VOCODER: 3,
    }  # fmt: skip
    for name, geometries in decoder.items():
        for geometry in geometries.every:
            for batch in batch_buckets(MAX_BATCH):
                plans[name].profile_of({**geometry, BATCH: batch})
                assert all(min(shape) >= 1 for shape in plans[name].shapes({**geometry, BATCH: batch}).values())


def test_geometries_of_engine_calls(plans: dict[str, EnginePlan]) -> None:
    """What the runtime asks for is what the plan names."""
    mel, source = np.zeros((2, 80, 38), np.float32), np.zeros((2, 9728), np.float32)
    asked = {
        FLOW_CONDITION: window_geometry(np.zeros((2, 8), np.int64), np.zeros((2, 55), np.int64)),
        FLOW_VELOCITY: mel_geometry(np.zeros((2, 80, 55), np.float32)),
        VOCODER: wave_geometry(mel, source),
    }
    assert plans[SENSEVOICE].profile_of(clip_geometry(np.zeros((3, 560), np.float32))) == 0
    for name, geometry in asked.items():
        plans[name].shapes(geometry)
        plans[name].profile_of(geometry)


def test_engines_without_a_plan_or_tensorrt_are_refused(plans: dict[str, EnginePlan], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"tensorrt_audio\.json: cannot be read"):
        TensorRtFlow(tmp_path)
    (tmp_path / "tensorrt_audio.json").write_text(AudioPlan("10.14.1.48", "9.0", MAX_BATCH, {}).to_json())
    with pytest.raises(EngineError, match="the plan has no vocoder_f0, vocoder"):
        TensorRtVocoder(tmp_path)
    if importlib.util.find_spec("tensorrt") is None:
        (tmp_path / "tensorrt_audio.json").write_text(AudioPlan("10.14.1.48", "9.0", MAX_BATCH, plans).to_json())
        for engine in (TensorRtSpeechTokenizer, TensorRtSenseVoice):
            with pytest.raises(EngineError, match="tensorrt is not installed"):
                engine(tmp_path)


def test_the_plan_survives_its_file(plans: dict[str, EnginePlan], tmp_path: Path) -> None:
    plan = AudioPlan("10.14.1.48", "9.0", MAX_BATCH, plans)
    (tmp_path / "tensorrt_audio.json").write_text(plan.to_json())
    assert load_plan(tmp_path) == plan
    for text, told in (("{}", "format is None"), ("[", "not a plan"), ('{"format": 2}', "engines")):
        (tmp_path / "tensorrt_audio.json").write_text(text)
        with pytest.raises(EngineError, match=told):
            load_plan(tmp_path)
    with pytest.raises(EngineError, match="cannot be read"):
        load_plan(tmp_path / "nothing")
