"""Speech tokenizer, flow and vocoder against what the authors' code computed: PyTorch modules and engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from build_engines.onnxruntime.flow import export_flow
from build_engines.onnxruntime.speech_tokenizer import export_speech_tokenizer
from build_engines.onnxruntime.vocoder import export_vocoder
from vita_audio.checkpoint.audio_decoder import load_flow, load_vocoder
from vita_audio.checkpoint.speech_tokenizer import load_speech_tokenizer
from vita_audio.contract.rates import mel_frames
from vita_audio.engines.interface import FlowEngine, SpeechTokenizerEngine, VocoderEngine
from vita_audio.engines.onnxruntime.audio import OnnxFlow, OnnxVocoder
from vita_audio.engines.onnxruntime.speech_tokenizer import OnnxSpeechTokenizer
from vita_audio.engines.torch.audio import TorchFlow, TorchSpeechTokenizer, TorchVocoder
from vita_audio.engines.torch_cuda.audio import TorchCudaFlow, TorchCudaVocoder
from vita_audio.engines.torch_cuda.speech_tokenizer import TorchCudaSpeechTokenizer
from vita_audio.models.flow import Flow, offline_frame_map, time_grid
from vita_audio.models.speech_tokenizer import SpeechTokenizer
from vita_audio.models.vocoder import Vocoder
from vita_audio.speech_features import speech_pieces, speech_tokens

IMPLEMENTATIONS = ("torch", "onnxruntime", "torch_cuda")
CPU = torch.device("cpu")
CLIPS = ("0.5", "3.21", "9.7")
FLOW_CASES = ("offline8", "offline25", "prompt20_new10")
MEL_LENGTHS = ("40", "73")


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def speech_tokenizer(
    request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> SpeechTokenizerEngine:
    config, tensors = load_speech_tokenizer(golden / "speech_tokenizer")
    if request.param == "torch":
        return TorchSpeechTokenizer(config, tensors)
    if request.param == "torch_cuda":
        return TorchCudaSpeechTokenizer(config, tensors, CPU)
    model, folder = SpeechTokenizer(config), tmp_path_factory.mktemp("speech_tokenizer")
    model.load_state_dict(tensors)
    export_speech_tokenizer(model, folder)
    return OnnxSpeechTokenizer(folder, threads=1)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def flow(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> FlowEngine:
    config, tensors = load_flow(golden / "audio_decoder")
    if request.param == "torch":
        return TorchFlow(config, tensors)
    if request.param == "torch_cuda":
        return TorchCudaFlow(config, tensors, CPU)
    model, folder = Flow(config), tmp_path_factory.mktemp("flow")
    model.load_state_dict(tensors)
    export_flow(model, folder)
    return OnnxFlow(folder, threads=1)


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def vocoder(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> VocoderEngine:
    config, tensors = load_vocoder(golden / "audio_decoder")
    if request.param == "torch":
        return TorchVocoder(config, tensors)
    if request.param == "torch_cuda":
        return TorchCudaVocoder(config, tensors, CPU)
    model, folder = Vocoder(config), tmp_path_factory.mktemp("vocoder")
    model.load_state_dict(tensors)
    export_vocoder(model, folder)
    return OnnxVocoder(folder, threads=1)


@pytest.mark.parametrize("clip", CLIPS)
def test_features(golden: Path, clip: str) -> None:
    case = load_file(golden / "speech_tokenizer" / "speech_tokenizer_io.safetensors")
    (piece,) = speech_pieces(case[f"{clip}.wave"], case[f"{clip}.features0"].shape[1])
    assert piece.features.shape == case[f"{clip}.features0"].shape[1:]
    assert np.abs(piece.features - case[f"{clip}.features0"][0]).max() < 1e-4


@pytest.mark.parametrize("clip", CLIPS)
def test_speech_tokens(golden: Path, speech_tokenizer: SpeechTokenizerEngine, clip: str) -> None:
    case = load_file(golden / "speech_tokenizer" / "speech_tokenizer_io.safetensors")
    assert speech_tokens(speech_tokenizer, case[f"{clip}.wave"]).tolist() == case[f"{clip}.tokens"].tolist()


@pytest.mark.parametrize("case", FLOW_CASES)
def test_flow_module(golden: Path, case: str) -> None:
    """Parts that only the module shows: token encoder states, the unguided estimator, the zero speaker, the sampler."""
    config, tensors = load_flow(golden / "audio_decoder")
    model = Flow(config)
    model.load_state_dict(tensors)
    io = {
        key.removeprefix(case + "."): torch.from_numpy(value)
        for key, value in load_file(golden / "audio_decoder" / "flow_io.safetensors").items()
        if key.startswith(case + ".")
    }
    window = torch.cat((io["prompt_token"], io["token"]), dim=1)
    known = io["prompt_feat"].shape[1]
    cond = torch.zeros_like(io["mu"])
    cond[:, :, :known] = io["prompt_feat"].transpose(1, 2)
    with torch.no_grad():
        states = model.encode(window)
        velocity = model.decoder.estimator(io["noise"], io["mu"], torch.tensor([0.37]), io["spks"], cond)
        mu = model.condition(window, offline_frame_map(window.shape[1], mel_frames(window.shape[1])))
        mel = model.sample(mu, cond, io["noise"], int(io["steps"]))[:, :, known:]
    assert relative(states.numpy(), io["encoder_out"].numpy()) < 1e-3
    assert relative(model.speaker().detach().numpy(), io["spks"].numpy()) < 1e-6
    assert relative(velocity.numpy(), io["estimator_t0_37"].numpy()) < 1e-3
    assert relative(mel.numpy(), io["mel"].numpy()) < 1e-3


@pytest.mark.parametrize("case", FLOW_CASES)
def test_flow_engine(golden: Path, flow: FlowEngine, case: str) -> None:
    io = load_file(golden / "audio_decoder" / "flow_io.safetensors")
    window = np.concatenate((io[f"{case}.prompt_token"], io[f"{case}.token"]), axis=1)
    frames, known = mel_frames(window.shape[1]), io[f"{case}.prompt_feat"].shape[1]
    mu = flow.condition(window, offline_frame_map(window.shape[1], frames).numpy())
    assert relative(mu, io[f"{case}.mu"]) < 1e-3
    cond = np.zeros_like(mu)
    cond[:, :, :known] = io[f"{case}.prompt_feat"].transpose(0, 2, 1)
    x, times = io[f"{case}.noise"], time_grid(int(io[f"{case}.steps"][0]))
    for index, start in enumerate(times[:-1]):
        x = x + np.float32(times[index + 1] - start) * flow.velocity(x, mu, cond, start)
    assert relative(x[:, :, known:], io[f"{case}.mel"]) < 1e-3


@pytest.mark.parametrize("length", MEL_LENGTHS)
def test_vocoder_engine(golden: Path, vocoder: VocoderEngine, length: str) -> None:
    io = load_file(golden / "audio_decoder" / "hift_io.safetensors")
    assert np.abs(vocoder.f0(io[f"{length}.mel"]) - io[f"{length}.f0"]).max() < 1e-2
    wave = vocoder.synthesize(io[f"{length}.mel"], io[f"{length}.source"][:, 0])
    assert wave.shape == io[f"{length}.wave"].shape
    assert np.abs(wave - io[f"{length}.wave"]).max() < 1e-3 * np.abs(io[f"{length}.wave"]).max()


@pytest.mark.parametrize("length", MEL_LENGTHS)
def test_vocoder_source(golden: Path, length: str) -> None:
    config, tensors = load_vocoder(golden / "audio_decoder")
    model = Vocoder(config)
    model.load_state_dict(tensors)
    io = {
        key: torch.from_numpy(value) for key, value in load_file(golden / "audio_decoder/hift_io.safetensors").items()
    }
    with torch.no_grad():
        source = model.source(io[f"{length}.f0"], io[f"{length}.phases"], io[f"{length}.noise"])
    assert relative(source.numpy(), io[f"{length}.source"][:, 0].numpy()) < 1e-3
